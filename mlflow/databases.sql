-- The databases that mlflow/compose.yaml and mlflow/serve.sh expect, and one for studies (ARDMVC_STUDY_DB).
-- Run once, as a superuser: psql -v ON_ERROR_STOP=1 -f databases.sql. The passwords come from the environment.
\getenv mlflow_password MLFLOW_DB_PASSWORD
\getenv study_password STUDY_DB_PASSWORD
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
CREATE ROLE study LOGIN PASSWORD :'study_password';
CREATE DATABASE studies OWNER study;

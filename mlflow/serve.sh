#!/usr/bin/env bash
# Starts the tracking server: runs and users in PostgreSQL, passwords asked for, files handed on to their store.
# Everything comes from the environment, and no secret goes to a command line or into a file.
#
# Needed:
#   PGHOST PGUSER PGPASSWORD        PostgreSQL with the databases mlflow and mlflow_auth (databases.sql makes them);
#                                   PGPORT, PGSSLMODE and libpq's other variables hold too
#   MLFLOW_ARTIFACTS_DESTINATION    s3://bucket/folder, with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, unless it is
#                                   Amazon's, MLFLOW_S3_ENDPOINT_URL; or a folder
#   MLFLOW_SERVER_ALLOWED_HOSTS     the names that clients and browsers call this server by, separated by commas; each
#                                   holds with any port and without one
#   MLFLOW_AUTH_ADMIN_USERNAME      the first admin, made at the first start
#   MLFLOW_AUTH_ADMIN_PASSWORD      at least 12 characters
#   MLFLOW_FLASK_SERVER_SECRET_KEY  any long random text, the same at every start
# Optional:
#   MLFLOW_HOST (127.0.0.1)   MLFLOW_PORT (5000)   MLFLOW_WORKERS (2)   PYTHON (python)
set -euo pipefail

missing=0
for name in PGHOST PGUSER PGPASSWORD MLFLOW_ARTIFACTS_DESTINATION MLFLOW_SERVER_ALLOWED_HOSTS \
    MLFLOW_AUTH_ADMIN_USERNAME MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY; do
    if [[ -z ${!name:-} ]]; then
        echo "serve.sh: $name is not set; what it means stands at the top of ${BASH_SOURCE[0]}" >&2
        missing=1
    fi
done
((missing)) && exit 2

# MLflow compares the whole Host header, port included, and its own list of names is replaced. A browser also tells which
# page a request comes from, and MLflow takes changes only from pages that it knows: its own, under each of the names.
hosts= origins=
IFS=', ' read -ra names <<<"$MLFLOW_SERVER_ALLOWED_HOSTS"
for name in "${names[@]}"; do
    [[ -n $name ]] || continue
    hosts+=",$name,$name:*"
    origins+=",http://$name,http://$name:*,https://$name,https://$name:*"
done

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
export MLFLOW_AUTH_CONFIG_PATH=${MLFLOW_AUTH_CONFIG_PATH:-$here/basic_auth.ini}
export MLFLOW_DISABLE_TELEMETRY=${MLFLOW_DISABLE_TELEMETRY:-true}
# Studies run elsewhere; without this, MLflow starts workers for jobs of its own.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}

exec "${PYTHON:-python}" -m mlflow server \
    --app-name basic-auth \
    --backend-store-uri postgresql+psycopg:///mlflow \
    --artifacts-destination "$MLFLOW_ARTIFACTS_DESTINATION" \
    --allowed-hosts "${hosts#,}" \
    --cors-allowed-origins "${origins#,}" \
    --host "${MLFLOW_HOST:-127.0.0.1}" \
    --port "${MLFLOW_PORT:-5000}" \
    --workers "${MLFLOW_WORKERS:-2}"

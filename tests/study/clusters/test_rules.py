"""The files for clusters: Ray's own schema accepts them, our rules find nothing, and each rule finds what it is for."""

import copy
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import study
from study.clusters import check as cluster_files
from study.clusters.check import ROOT, faults, leaves, network_policy, pins, pip_installs, rules_for

FOLDER = Path(study.__file__).parent / "clusters"
LAUNCHER = ("aws", "gcp", "local")
FILLED = {
    **{"REGION": "us-east-1", "IMAGE": "ami-0123456789abcdef0", "SECURITY_GROUP": "sg-0123456789abcdef0"},
    **{"PROJECT": "my-project", "ZONE": "us-central1-a", "BUCKET": "my-bucket"},
    **{"HEAD_IP": "10.0.0.1", "WORKER_IPS": "10.0.0.2, 10.0.0.3", "SSH_USER": "me", "SSH_KEY": "~/.ssh/id_ed25519"},
    **{"SHARED_FOLDER": "/shared", "REGISTRY": "registry.example/me"},
    **{"RAY_DIGEST": f"sha256:{'0' * 64}", "DIGEST": f"sha256:{'f' * 64}"},
}
GONE = object()
HEAD, SPOT, RESERVE = (f"available_node_types {name}" for name in ("head", "gpu_spot", "gpu_on_demand"))
CLUSTER = "spec rayClusterSpec"
HEAD_POD = f"{CLUSTER} headGroupSpec template spec"
FIRST, SECOND = (f"{CLUSTER} workerGroupSpecs {number}" for number in (0, 1))


def filled(name: str) -> dict[str, Any]:
    """A shipped file with something in place of every placeholder."""
    return copy.deepcopy(read_filled(name))


@lru_cache
def read_filled(name: str) -> dict[str, Any]:
    return documents(name)[0]


def documents(name: str) -> list[dict[str, Any]]:
    """What a shipped file holds, filled in: a cluster or a job, and who may talk to the job's pods."""
    text = (FOLDER / f"{name}.yaml").read_text()
    for placeholder, value in FILLED.items():
        text = text.replace(f"<{placeholder}>", value)
    # Anchors make one object of what stands in two places; a change must hit one of them only.
    return list(yaml.safe_load_all(yaml.dump_all(yaml.safe_load_all(text), Dumper=NoAliases)))


class NoAliases(yaml.SafeDumper):
    """Writes what an anchor stood for out in every place."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def changed(config: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """The config with one entry set or taken away; path: keys and indices with blanks between, `+` appends."""
    config = copy.deepcopy(config)
    *way, last = path.split(" ")
    place: Any = config
    for key in way:
        place = place[int(key) if isinstance(place, list) else key]
    if last == "+":
        place.append(value)
    elif value is GONE:
        del place[int(last) if isinstance(place, list) else last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return config


def found_in(config: dict[str, Any], folder: Path, policies: Sequence[Any] | None = None) -> list[str]:
    """The faults of a file; a job has the shipped policy beside it unless others are given."""
    if policies is None:
        policies = documents("kubernetes")[1:] if "kind" in config else []
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump_all([config, *policies]))
    return faults(file)


@pytest.fixture(scope="module")
def ray_accepts() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Ray's schema over a file with the provider's defaults filled in, as `ray up` does it. Private in Ray."""
    import ray

    if ray.__version__ != pins()["ray"]:
        pytest.skip(f"Ray {ray.__version__} is not the {pins()['ray']} that its private functions were read in")
    from ray.autoscaler._private.util import prepare_config, validate_config

    def check(config: dict[str, Any]) -> dict[str, Any]:
        prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
        return prepared

    return check


# The shipped files.


def test_every_shipped_file_is_known_here() -> None:
    assert sorted(file.stem for file in FOLDER.glob("*.yaml")) == sorted([*LAUNCHER, "kubernetes", "schema"])


@pytest.mark.parametrize("name", [*LAUNCHER, "kubernetes"])
def test_a_shipped_file_has_no_fault_once_it_is_filled_in(name: str, tmp_path: Path) -> None:
    assert found_in(filled(name), tmp_path) == []


@pytest.mark.parametrize("name", [*LAUNCHER, "kubernetes"])
def test_a_shipped_file_says_what_is_to_be_filled_in(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    names = set(re.findall(r"<([A-Z_]+)>", text)) - {"PLACEHOLDERS"}
    assert faults(FOLDER / f"{name}.yaml") == [f"<{each}> is not filled in" for each in sorted(names)]


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_accepts_a_shipped_file(name: str, ray_accepts: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    prepared = ray_accepts(filled(name))
    for key in ("head_setup_commands", "worker_setup_commands"):
        assert prepared[key][:4] == filled(name)["setup_commands"]
    assert "nightly" not in str(prepared)
    assert "ray-3.0.0" not in str(prepared)


@pytest.mark.parametrize(
    ("name", "path", "value", "words"),
    [
        ("aws", "max_worker", 3, "'max_worker' was unexpected"),
        ("aws", "max_workers", "eight", "'eight' is not of type 'integer'"),
        ("aws", f"{SPOT} resources GPU", 0.5, "0.5 is not of type 'integer'"),
        ("aws", f"{SPOT} spot", True, "'spot' was unexpected"),
        ("aws", "head_node_type", "boss", "must be one of `available_node_types`"),
        ("aws", f"{SPOT} min_workers", 9, "smaller than the sum of `min_workers`"),
        ("gcp", "provider type", 3, "3"),
        ("gcp", "head_start_ray_commands", "ray start", "'ray start' is not of type 'array'"),
        ("local", "docker imagee", "x", "'imagee' was unexpected"),
    ],
)
def test_ray_refuses_what_its_schema_knows(
    name: str, path: str, value: object, words: str, ray_accepts: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    with pytest.raises(Exception, match=re.escape(words)):
        ray_accepts(changed(filled(name), path, value))


def test_aws_takes_every_key_of_the_nodes() -> None:
    """The lists of keys are ours; the model of RunInstances that comes with boto3 is Amazon's."""
    botocore = pytest.importorskip("botocore.session")
    from botocore.validate import ParamValidator

    shape = botocore.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node in filled("aws")["available_node_types"].items():
        report = ParamValidator().validate({**node["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
    known = set(shape.members) | {"SubnetIds"}  # SubnetIds is Ray's own
    assert set(cluster_files.schemas()["shapes"]["aws"]) <= known


@pytest.mark.parametrize("name", LAUNCHER)
def test_setup_installs_what_is_pinned_and_then_the_project(name: str) -> None:
    calls = [words for command in filled(name)["setup_commands"] for words in pip_installs(command)]
    assert calls == [
        ["--no-cache-dir", "--require-hashes", "-r", "requirements.txt", "-r", "requirements-cuda.txt"],
        ["--no-deps", "--no-build-isolation", "-e", "."],
    ]


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_the_script_that_reads_secrets_is_python_and_survives_the_shells_of_ray(name: str, tmp_path: Path) -> None:
    """Ray wraps a command three times: for the container, for `docker exec`, for SSH."""
    command = filled(name)["head_setup_commands"][-1].replace("/home/ray/", f"{tmp_path}/")
    for _ in range(3):
        command = f"bash -c {shlex.quote(f'true && ({command})')}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    script = (tmp_path / "with_secrets.py").read_text()
    compile(script, "with_secrets.py", "exec")
    assert script.splitlines()[-1] == "os.execvp(sys.argv[1], sys.argv[1:])"


# What the rules are for: one change each.

LONG_KEY = "A" * 16
EVERYWHERE = [
    ("placeholders", "cluster_name", "<CLUSTER>", "<CLUSTER> is not filled in"),
    ("anywhere", "docker run_options +", "-e MLFLOW_TRACKING_PASSWORD=hunter2", "a secret"),
    ("anywhere", "docker run_options +", "-e ARDMVC_STUDY_DB=somewhere", "docker.run_options[5]: a secret"),
    ("anywhere", "docker password", "hunter2", "docker.password: a secret"),
    ("anywhere", "provider cidr", "0.0.0.0/0", "provider.cidr: 0.0.0.0/0 is the whole world"),
    ("anywhere", "provider cidr", "::/0", "::/0 is the whole world"),
    ("anywhere", "head_start_ray_commands 1", "ray start --dashboard-host=0.0.0.0", "listen to everyone"),
    (
        "anywhere",
        "docker run_options 3",
        "-e RAY_AUTH_MODE=disabled",
        "run_options[3]: RAY_AUTH_MODE must be token",
    ),
    (
        "anywhere",
        "head_start_ray_commands 0",
        "RAY_AUTH_MODE=tokn ray start --head",
        "[0]: RAY_AUTH_MODE must be token",
    ),
    (
        "anywhere",
        "worker_start_ray_commands 1",
        "RAY_AUTH_MODE='' ray start",
        "worker_start_ray_commands[1]: RAY_AUTH_MODE",
    ),
    ("values", "docker run_options", ["--shm-size=4g"], "docker.run_options: must give -e RAY_AUTH_MODE=token"),
    ("token_file", "file_mounts /home/ray/cluster", GONE, "of a file in a folder of file_mounts"),
    ("images", "docker image", "rayproject/ray:latest", "docker.image: must have the tag 2.60.0-py311"),
    ("images", "docker image", "rayproject/ray:2.59.0-py311-cpu", "must have the tag 2.60.0-py311"),
    ("images", "docker image", "rayproject/ray:2.60.0-py310-cpu", "must have the tag 2.60.0-py311"),
    ("images", "docker image", "rayproject/ray", "must have the tag 2.60.0-py311"),
    ("images", "docker worker_image", "rayproject/ray:nightly-py311", "docker.worker_image: must have the tag"),
    ("images", "docker image", "someone/ray:2.60.0-py311", "docker.image: must be rayproject/ray"),
    ("images", "docker image", "rayproject/ray:2.60.0-py311-cpu", "docker.image: must end in @sha256:DIGEST"),
    ("images", "docker image", "rayproject/ray:2.60.0-py311-cpu@sha256:12", "docker.image: must end in @sha256:DIGEST"),
    ("pinned_packages", "setup_commands 3", "assert ray.__version__ == '2.59.0'", "ray 2.59.0 is not the 2.60.0"),
    ("pinned_packages", "setup_commands +", "pip install torch", "torch has no hash"),
    ("pinned_packages", "setup_commands +", "pip install torch==2.13.0", "torch==2.13.0 has no hash"),
    ("pinned_packages", "setup_commands +", "pip install -c requirements.txt torch", "torch has no hash"),
    ("pinned_packages", "setup_commands +", "pip install -r requirements.txt", "without --require-hashes"),
    (
        "pinned_packages",
        "setup_commands +",
        "pip install --require-hashes -r mine.txt",
        "'mine.txt' is no file of pinned",
    ),
    ("pinned_packages", "setup_commands +", "pip install -e '.[cluster]'", "needs --no-deps --no-build-isolation"),
    ("pinned_packages", "setup_commands +", "pip install --no-deps .", "needs --no-deps --no-build-isolation"),
    ("pinned_packages", "setup_commands +", "pip install -U --require-hashes -r requirements.txt", "-U takes what is"),
    ("pinned_packages", "setup_commands +", "pip install git+https://h/x", "from an address"),
    (
        "anywhere",
        "setup_commands +",
        "which ray || pip install https://h/latest/ray.whl",
        "latest or single wheel",
    ),
    ("anywhere", "setup_commands +", "pip install ray-nightly==1", "installs a nightly"),
    ("values", "idle_timeout_minutes", GONE, "idle_timeout_minutes: must be between 1 and 30, got None"),
    ("values", "idle_timeout_minutes", 600, "idle_timeout_minutes: must be between 1 and 30, got 600"),
    ("values", "docker", GONE, "docker.container_name: is missing"),
    ("values", "docker run_options 0", GONE, "docker.run_options: must give --shm-size"),
    ("values", "docker run_options 1", GONE, "docker.run_options: must give --ulimit nofile"),
    ("values", "docker worker_run_options", GONE, "docker.worker_run_options: must give --gpus"),
    ("values", "file_mounts", GONE, "file_mounts: must copy this checkout"),
    ("values", "rsync_exclude", GONE, "rsync_exclude: must hold .venv"),
    ("values", "rsync_exclude 1", GONE, "rsync_exclude: must hold runs"),
    ("values", "rsync_filter", GONE, "rsync_filter: must hold .gitignore"),
    ("values", "setup_commands", GONE, "setup_commands: are missing"),
    ("values", "setup_commands", [], "setup_commands: are missing"),
    ("commands", "setup_commands 2", "pip install -r requirements.txt", "must install requirements-cuda.txt"),
    ("commands", "setup_commands 2", "pip install -e .", "setup_commands: must install requirements.txt"),
    ("commands", "setup_commands 2", "pip install -r requirements.txt", "must install this project"),
    ("values", "head_start_ray_commands", GONE, "head_start_ray_commands: must start Ray"),
    ("values", "worker_start_ray_commands", GONE, "worker_start_ray_commands: must start Ray"),
    ("shape", "cluster_name", GONE, "cluster_name: is missing"),
    ("values", "cluster_name", "", "cluster_name: is missing"),
    ("shape", "max_worker", 3, "max_worker: unknown key; nearest: 'max_workers'"),
    ("shape", "max_workers", "eight", "max_workers: must be a whole number"),
    ("values", "provider type", "azure", "provider.type: must be one of aws, gcp, local, got 'azure'"),
]
ON_CLOUDS = [
    ("values", "provider cache_stopped_nodes", True, "provider.cache_stopped_nodes: must be false"),
    ("values", "provider cache_stopped_nodes", GONE, "provider.cache_stopped_nodes: must be false"),
    ("cloud_nodes", "head_node_type", "boss", "head_node_type: 'boss' is none of available_node_types"),
    ("cloud_nodes", f"{HEAD} max_workers", GONE, "available_node_types.head.max_workers: must be 0"),
    ("cloud_nodes", f"{HEAD} max_workers", 2, "available_node_types.head.max_workers: must be 0"),
    ("cloud_nodes", f"{HEAD} resources CPU", 2, "head.resources.CPU: must be 0, or trials run on the head"),
    ("cloud_nodes", f"{HEAD} resources GPU", 1, "head.resources.GPU: must be 0, or trials run on the head"),
    ("cloud_nodes", f"{HEAD} resources", {}, "head.resources.CPU: must be 0, or trials run on the head"),
    ("cloud_nodes", RESERVE, GONE, "gpu_spot: no type on demand has the same resources"),
    ("cloud_nodes", f"{RESERVE} resources GPU", 2, "gpu_spot: no type on demand has the same resources"),
    ("cloud_nodes", SPOT, GONE, "available_node_types: no worker with a GPU is on spot"),
    ("cloud_nodes", f"{SPOT} resources", {}, "gpu_spot.resources.CPU: is missing"),
    ("cloud_nodes", f"{SPOT} min_workers", 1, "gpu_spot.min_workers: must be 0"),
    ("cloud_nodes", f"{SPOT} priority", GONE, "gpu_spot.priority: must be higher"),
    ("cloud_nodes", f"{SPOT} max_workers", 8, "max_workers: must be more than the 8 that may be on spot"),
    ("cloud_nodes", "max_workers", GONE, "max_workers: must be more than the 6 that may be on spot"),
]
ON_AWS = [
    (
        "shape",
        f"{SPOT} node_config InstanceTyp",
        "g6.xlarge",
        "InstanceTyp: unknown key; nearest: 'InstanceType'",
    ),
    ("values", f"{SPOT} node_config InstanceType", GONE, "gpu_spot.node_config.InstanceType: is missing"),
    ("values", f"{HEAD} node_config ImageId", GONE, "head.node_config.ImageId: is missing"),
    ("values", f"{SPOT} node_config SecurityGroupIds", GONE, "SecurityGroupIds: are missing"),
    ("values", f"{SPOT} node_config IamInstanceProfile", GONE, "IamInstanceProfile: is missing"),
    ("shape", f"{SPOT} node_config IamInstanceProfile name", "x", "IamInstanceProfile.name: unknown key"),
    ("values", f"{HEAD} node_config BlockDeviceMappings", GONE, "BlockDeviceMappings: must give the root volume"),
    ("values", f"{HEAD} node_config BlockDeviceMappings 0 Ebs VolumeSize", 30, "VolumeSize of at least 100"),
    (
        "shape",
        f"{HEAD} node_config BlockDeviceMappings 0 Ebs Size",
        150,
        "BlockDeviceMappings[0].Ebs.Size: unknown",
    ),
    ("shape", f"{HEAD} node_config BlockDeviceMappings", {}, "BlockDeviceMappings: must be a list"),
    ("shape", f"{SPOT} node_config InstanceMarketOptions", "spot", "InstanceMarketOptions: must be a mapping"),
    ("values", f"{SPOT} node_config InstanceMarketOptions MarketType", "Spot", "must be spot, got 'Spot'"),
    ("cloud_nodes", f"{SPOT} node_config InstanceMarketOptions", GONE, "no worker with a GPU is on spot"),
    ("cloud_nodes", f"{HEAD} node_config InstanceMarketOptions", {"MarketType": "spot"}, "the head must be on demand"),
    ("cloud_nodes", f"{RESERVE} node_config InstanceMarketOptions", {"MarketType": "spot"}, "no type on demand"),
    ("values", "provider availability_zone", GONE, "must name at least two zones"),
    ("values", "provider availability_zone", "us-east-1a", "must name at least two zones"),
    ("anywhere", "provider aws_credentials", {"aws_secret_access_key": "abc"}, "aws_secret_access_key: a secret"),
]
ON_GCP = [
    ("shape", f"{SPOT} node_config machinetype", "x", "machinetype: unknown key; nearest: 'machineType'"),
    ("values", f"{SPOT} node_config machineType", GONE, "gpu_spot.node_config.machineType: is missing"),
    ("values", f"{SPOT} node_config networkInterfaces", GONE, "networkInterfaces: must name a subnetwork"),
    ("cloud_nodes", f"{SPOT} node_config serviceAccounts", GONE, "serviceAccounts: are missing"),
    ("values", f"{HEAD} node_config disks 0 initializeParams diskSizeGb", 10, "diskSizeGb of at least 100"),
    ("shape", f"{SPOT} node_config scheduling", [{"preemptible": True}], "scheduling: must be a mapping"),
    ("values", f"{SPOT} node_config scheduling provisioningModel", "spot", "must be SPOT or STANDARD"),
    ("cloud_nodes", f"{SPOT} node_config scheduling", GONE, "no worker with a GPU is on spot"),
    ("cloud_nodes", f"{HEAD} node_config scheduling", {"provisioningModel": "SPOT"}, "the head must be on demand"),
    ("values", "provider availability_zone", "us-central1-a,us-central1-b", "must name one zone"),
    ("anywhere", "provider gcp_credentials", "{}", "provider.gcp_credentials: a secret"),
    ("pinned_packages", "head_setup_commands 0", "pip install google-api-python-client", "has no hash"),
]
ON_HOSTS = [
    ("values", "head_start_ray_commands 1", "ray start --head --num-gpus=0", "must give --num-cpus=0"),
    ("values", "head_start_ray_commands 1", "ray start --head --num-cpus=0", "must give --num-gpus=0"),
    (
        "values",
        "head_start_ray_commands 1",
        "ray start --head --num-cpus=04 --num-gpus=0",
        "must give --num-cpus=0",
    ),
    ("values", "provider worker_ips", [], "provider.worker_ips: are missing"),
    ("local_head", "provider worker_ips +", "10.0.0.1", "provider.worker_ips: the head cannot be a worker"),
]
ON_KUBERNETES = [
    ("placeholders", "metadata name", "<NAME>", "<NAME> is not filled in"),
    (
        "anywhere",
        f"{HEAD_POD} containers 0 env 0",
        {"name": "ARDMVC_STUDY_DB", "value": "x"},
        "ARDMVC_STUDY_DB has a",
    ),
    ("anywhere", "spec entrypoint", "MLFLOW_TRACKING_PASSWORD=x python --address auto", "spec.entrypoint: a secret"),
    ("anywhere", "metadata annotations", {"ranges": "0.0.0.0/0"}, "0.0.0.0/0 is the whole world"),
    ("images", f"{HEAD_POD} containers 0 image", "me/ardmvc:latest", "must have the tag 2.60.0-py311"),
    (
        "images",
        f"{SECOND} template spec containers 0 image",
        "me/ardmvc:2.59.0-py311",
        "must have the tag 2.60.0-py311",
    ),
    ("images", f"{HEAD_POD} containers 0 image", "me/ardmvc:2.60.0-py311", "must end in @sha256:DIGEST"),
    ("anywhere", f"{HEAD_POD} containers 0 env +", {"name": "RAY_AUTH_MODE", "value": "disabled"}, "must be token"),
    ("pinned_packages", "spec entrypoint", "pip install torch && x --address auto", "torch has no hash"),
    ("values", "apiVersion", "ray.io/v1alpha1", "apiVersion: must be ray.io/v1, got 'ray.io/v1alpha1'"),
    ("values", "kind", "RayCluster", "kind: must be RayJob, got 'RayCluster'"),
    ("values", "metadata name", GONE, "metadata.name: is missing"),
    ("values", "spec entrypoint", GONE, "spec.entrypoint: is missing"),
    ("values", "spec entrypoint", "python -m study.sweep x.yaml", "spec.entrypoint: must give --address auto"),
    ("shape", "spec entryPoint", "x", "spec.entryPoint: unknown key; nearest: 'entrypoint'"),
    ("images", f"{CLUSTER} rayVersion", "2.59.0", "rayVersion: must be 2.60.0"),
    ("values", f"{CLUSTER} authOptions", GONE, "authOptions.mode: must be token"),
    ("values", f"{CLUSTER} authOptions mode", "disabled", "authOptions.mode: must be token"),
    ("shape", f"{CLUSTER} headGroupSpec replicas", 1, "headGroupSpec.replicas: unknown key"),
    ("values", f"{HEAD_POD} containers", [], "headGroupSpec.template.spec.containers: is missing"),
    ("shape", f"{HEAD_POD} containers 0 resource", {}, "containers[0].resource: unknown key; nearest: 'resources'"),
    ("values", "spec shutdownAfterJobFinishes", GONE, "spec.shutdownAfterJobFinishes: must be true"),
    ("values", f"{CLUSTER} enableInTreeAutoscaling", False, "enableInTreeAutoscaling: must be true"),
    ("values", f"{CLUSTER} autoscalerOptions", GONE, "idleTimeoutSeconds: must be between 60 and 1800, got None"),
    ("values", f"{CLUSTER} autoscalerOptions idleTimeoutSeconds", 9, "must be between 60 and 1800, got 9"),
    ("values", f"{CLUSTER} headGroupSpec rayStartParams num-cpus", 0, "num-cpus: must be text"),
    ("values", f"{FIRST} template spec serviceAccountName", GONE, "serviceAccountName: is missing"),
    ("values", f"{HEAD_POD} restartPolicy", "Always", "restartPolicy: must be Never"),
    ("values", f"{FIRST} template spec containers 0 volumeMounts", [], "must mount memory at /dev/shm"),
    ("values", f"{HEAD_POD} securityContext", GONE, "securityContext.runAsNonRoot: must be true"),
    (
        "values",
        f"{FIRST} template spec securityContext seccompProfile type",
        "Unconfined",
        "must be RuntimeDefault",
    ),
    (
        "values",
        f"{FIRST} template spec automountServiceAccountToken",
        GONE,
        "automountServiceAccountToken: must be",
    ),
    ("values", f"{SECOND} template spec containers 0 securityContext", GONE, "privileged: must be false"),
    ("values", f"{HEAD_POD} containers 0 securityContext privileged", True, "privileged: must be false"),
    (
        "values",
        f"{HEAD_POD} containers 0 securityContext capabilities",
        {"drop": ["NET_RAW"]},
        "containers[0].securityContext.capabilities.drop: must be [ALL]",
    ),
    ("values", f"{HEAD_POD} initContainers", [{"name": "x"}], "initContainers[0].securityContext.privileged"),
    ("values", f"{CLUSTER} autoscalerOptions securityContext", GONE, "autoscalerOptions.securityContext.priv"),
    ("values", f"{CLUSTER} headGroupSpec rayStartParams num-cpus", GONE, 'rayStartParams.num-cpus: must be "0"'),
    ("values", f"{CLUSTER} headGroupSpec rayStartParams num-gpus", "1", 'rayStartParams.num-gpus: must be "0"'),
    ("values", f"{HEAD_POD} containers 0 resources limits nvidia.com/gpu", "1", "the head asks for a GPU"),
    ("values", f"{HEAD_POD} nodeSelector", {"karpenter.sh/capacity-type": "spot"}, "the head must be on demand"),
    ("values", f"{HEAD_POD} containers 0 env 0", GONE, "must get ARDMVC_STUDY_DB by valueFrom.secretKeyRef"),
    ("values", SECOND, GONE, "workerGroupSpecs: no group is on demand"),
    ("values", FIRST, GONE, "workerGroupSpecs: no group is on spot"),
    ("values", f"{FIRST} minReplicas", 1, "workerGroupSpecs[0].minReplicas: must be 0"),
    ("values", f"{FIRST} maxReplicas", 0, "workerGroupSpecs[0].maxReplicas: must be at least 1"),
    ("values", f"{FIRST} template spec containers 0 resources limits", {}, "asks for no nvidia.com/gpu"),
]
CHANGES = [
    *(("aws", *change) for change in EVERYWHERE),
    *(("aws", *change) for change in (*ON_CLOUDS, *ON_AWS)),
    *(("gcp", *change) for change in (*ON_CLOUDS, *ON_GCP)),
    *(("local", *change) for change in ON_HOSTS),
    *(("kubernetes", *change) for change in ON_KUBERNETES),
]


@pytest.mark.parametrize(("name", "rule", "path", "value", "words"), CHANGES)
def test_a_rule_finds_what_it_is_for(
    name: str, rule: str, path: str, value: object, words: str, tmp_path: Path
) -> None:
    config = changed(filled(name), path, value)
    found = found_in(config, tmp_path)
    assert any(words in fault for fault in found), found
    (named,) = [each for each in rules_for(config) if each.__name__ == rule]
    assert any(words in fault for fault in named(config))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("", [], "headGroupSpec.template.metadata.labels: no NetworkPolicy in this file selects these pods"),
        ("kind", "Service", "document 2.kind: must be NetworkPolicy beside a RayJob, got 'Service'"),
        (
            "spec podSelector matchLabels ardmvc",
            "other",
            "workerGroupSpecs[1].template.metadata.labels: no NetworkPolicy",
        ),
        ("spec policyTypes", ["Egress"], "document 2.spec.policyTypes: must hold Ingress"),
        ("spec ingress +", {}, "ingress[2].from: must name who may come in"),
        (
            "spec ingress 0 from +",
            {"namespaceSelector": {}},
            "ingress[0].from[1].podSelector.matchLabels: must name who",
        ),
        (
            "spec ingress 1 from 1 podSelector",
            {},
            "ingress[1].from[1].podSelector.matchLabels: must name who",
        ),
        ("spec ingress 0 from 0", {"ipBlock": {"cidr": "0.0.0.0/0"}}, "0.0.0.0/0 is the whole world"),
    ],
)
def test_pods_are_behind_a_policy_that_names_who_may_come_in(
    path: str, value: object, words: str, tmp_path: Path
) -> None:
    job, policy = documents("kubernetes")
    found = found_in(job, tmp_path, [changed(policy, path, value)] if path else [])
    assert any(words in fault for fault in found), found


def test_pods_that_no_policy_selects_are_a_fault(tmp_path: Path) -> None:
    job, policy = documents("kubernetes")
    assert list(network_policy(job, [policy])) == []
    (fault,) = network_policy(changed(job, f"{FIRST} template metadata", GONE), [policy])
    assert fault.startswith("spec.rayClusterSpec.workerGroupSpecs[0].template.metadata.labels: no NetworkPolicy")
    (fault,) = found_in(filled("aws"), tmp_path, [policy])
    assert fault.startswith("must be one document")


def test_every_rule_is_tried() -> None:
    rules = {rule.__name__ for name in (*LAUNCHER, "kubernetes") for rule in rules_for(filled(name))}
    assert rules == {rule for _, rule, *_ in CHANGES}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"# AKIA{LONG_KEY}", "a key of AWS"),
        (f"# ASIA{LONG_KEY}", "a key of AWS"),
        ("# -----BEGIN OPENSSH PRIVATE" + " KEY-----", "a private key"),
        ("# postgresql+psycopg://study:hunter2@db.example/studies", "a password in an address"),
        ("# http://:hunter2@tracking.example", "a password in an address"),
        ("# gh" + f"p_{'a' * 36}", "a token"),
    ],
)
def test_a_secret_is_found_in_a_comment_too_and_not_repeated(line: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(filled("aws")) + line + "\n")
    (fault,) = faults(file)
    number = len(file.read_text().splitlines())
    assert fault == f"line {number}: {words}; secrets come from the environment or from a secret store"


@pytest.mark.parametrize(
    "value",
    [
        "-e MLFLOW_TRACKING_PASSWORD=$MLFLOW_TRACKING_PASSWORD",
        '-e ARDMVC_STUDY_DB="$ARDMVC_STUDY_DB"',
        "-e HttpTokens=x",
    ],
)
def test_a_reference_to_a_secret_is_none(value: str, tmp_path: Path) -> None:
    assert found_in(changed(filled("aws"), "docker run_options +", value), tmp_path) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is no YAML"),
        ("- a", "must be a mapping"),
        ("", "must be a mapping"),
        ("provider: 3\navailable_node_types: [1]\ndocker: x\nmax_workers: x", "provider.type: must be one of"),
        ("kind: RayJob\nspec: {rayClusterSpec: {workerGroupSpecs: 3, headGroupSpec: []}}", "must be a list"),
    ],
)
def test_nonsense_is_a_fault_and_no_crash(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    assert any(words in fault for fault in faults(file))


@pytest.mark.parametrize("name", [*LAUNCHER, "kubernetes"])
def test_no_value_of_a_wrong_type_is_a_crash(name: str) -> None:
    config = filled(name)
    paths = {re.sub(r"\[(\d+)\]", r".\1", path) for path, *_ in leaves(config)}
    for path in sorted(paths):
        if "/" in path or "eks.amazonaws" in path:
            continue
        for value in (None, [], {}, 7, "x", True):
            wrong = changed(config, path.replace(".", " "), value)
            for rule in rules_for(wrong):
                assert all(isinstance(fault, str) for fault in rule(wrong))


@pytest.mark.parametrize("text", ["password: hunter2: x", "password: [hunter2", "a: &hunter2 [*hunter2]", "x: .nan"])
def test_a_text_that_is_no_yaml_is_not_repeated(text: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    (fault,) = faults(file)
    assert fault.startswith("is no YAML")
    assert "hunter2" not in fault


def test_every_rule_says_what_is_wrong() -> None:
    blocks = cluster_files.schemas()["rules"]
    wanted = [each for block in blocks.values() for each in block.values()]
    rules = [rule for each in wanted for rule in (each if isinstance(each, list) else [each])]
    assert all(rule in blocks if isinstance(rule, str) else rule["title"] for rule in rules)


# For people.


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "study.clusters.check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_command_prints_faults_and_exits_2(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(yaml.safe_dump(filled("aws")))
    bad.write_text(yaml.safe_dump(changed(filled("aws"), "idle_timeout_minutes", GONE)))
    done = run(good)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run(good, bad, tmp_path / "none.yaml")
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first == f"{bad}: idle_timeout_minutes: must be between 1 and 30, got None"
    assert second.startswith(f"{tmp_path / 'none.yaml'}: cannot be read: ")


# The page.

PAGE = ROOT / "docs" / "cluster.md"


def test_the_page_fills_in_every_placeholder_and_nothing_else() -> None:
    text = PAGE.read_text()
    for file in (FOLDER / f"{name}.yaml" for name in (*LAUNCHER, "kubernetes")):
        names = set(re.findall(r"<[A-Z_]+>", file.read_text())) - {"<PLACEHOLDERS>"}
        (command,) = re.findall(rf"^sed (.*) study/clusters/{file.name} ", text.replace("\\\n", " "), re.MULTILINE)
        assert set(re.findall(r"<[A-Z_]+>", command)) == names, file.name


def test_the_page_builds_the_image_of_the_pinned_ray() -> None:
    text = PAGE.read_text()
    (base,) = re.findall(r"^FROM (\S+)$", text, re.MULTILINE)
    assert base == f"rayproject/ray:{pins()['ray']}-py311-cpu@${{RAY_DIGEST}}"
    (command,) = re.findall(r"^RUN ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    (setup,) = [each for each in filled("aws")["setup_commands"] if "pip install" in each]
    assert list(pip_installs(command.replace("\\\n", " "))) == list(pip_installs(setup))


def test_the_page_installs_nothing_without_a_hash() -> None:
    calls = list(pip_installs(PAGE.read_text().replace("\\\n", " ")))
    assert len(calls) >= 4
    for words in calls:
        assert list(cluster_files.install_faults(words)) == [], words


def test_the_page_knows_no_address_of_a_database_without_its_certificate() -> None:
    addresses = re.findall(r"postgresql\+psycopg://[^\s\"'`]+", PAGE.read_text())
    assert len(addresses) >= 3
    for address in addresses:
        assert "sslmode=verify-full&sslrootcert=" in address
    assert re.findall(r"printf %s (\S+) \| keep PGSSLMODE", PAGE.read_text()) == ["verify-full"]


def test_the_page_names_files_and_commands_that_exist() -> None:
    text = PAGE.read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (PAGE.parent / link).exists(), link
    for file in re.findall(r"\bstudy/clusters/\w+\.yaml", text):
        assert (ROOT / file).exists(), file

"""What Ray's own check of a cluster file does not see: `python -m study.clusters.check FILE…` prints the faults.

For files of Ray's cluster launcher (AWS, Google Cloud, own hosts) and RayJobs of KubeRay. A fault is a line: where,
what is wrong, what would work. Nothing here talks to a cloud, and no message repeats a secret.
"""

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import yaml

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = (
    *("requirements.txt", "requirements-cuda.txt", "requirements-dev.txt"),
    *("mlflow/requirements.txt", "study/clusters/requirements.txt"),
)
"""The files of pinned packages, with a hash for every file that may be installed."""
PYTHON = "py311"
PROVIDERS = ("aws", "gcp", "local")
IDLE_MINUTES = (1, 30)
ROOT_GB = 100
"""Image, torch with CUDA and data do not fit on less."""

Rule = Callable[[dict[str, Any]], Iterator[str]]

LITERALS = {
    "a key of AWS": re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a password in an address": re.compile(r"[a-z]://[^\s/:@'\"]*:[^\s/@'\"]+@"),
    "a token": re.compile(r"\b(gh[oprsu]_\w{30,}|github_pat_\w{30,}|AIza[\w-]{35}|xox[abprs]-[\w-]{10,}|hf_\w{30,})"),
}
NAMES = r"[A-Z0-9_]*(?:PASSWORD|SECRET|TOKEN|ACCESS_KEY(?:_ID)?|API_KEY|STUDY_DB|TRACKING_URI|TRACKING_USERNAME)"
ASSIGNED = re.compile(rf"\b({NAMES})=(?![\"']?\$)[\"']?[^\s\"']")
SECRET_NAME = re.compile(rf"^{NAMES}$|(?i:(?:password|passwd|secret|token|access_?key(?:_?id)?|api_?key|credentials)$)")

Shape = Any
"""Which keys a value may have: a mapping of them, a list of one shape for every entry, or None for anything."""

AWS_NODE: Shape = {
    "InstanceType": None,
    "ImageId": None,
    "KeyName": None,
    "SecurityGroupIds": None,
    "SubnetIds": None,
    "IamInstanceProfile": {"Name": None, "Arn": None},
    "MetadataOptions": {"HttpTokens": None, "HttpEndpoint": None, "HttpPutResponseHopLimit": None},
    "BlockDeviceMappings": [
        {
            "DeviceName": None,
            "Ebs": {
                **dict.fromkeys(("VolumeSize", "VolumeType", "DeleteOnTermination", "Encrypted")),
                **dict.fromkeys(("Iops", "Throughput", "KmsKeyId")),
            },
        }
    ],
    "InstanceMarketOptions": {
        "MarketType": None,
        "SpotOptions": {"MaxPrice": None, "SpotInstanceType": None, "InstanceInterruptionBehavior": None},
    },
    "TagSpecifications": [{"ResourceType": None, "Tags": [{"Key": None, "Value": None}]}],
}
GCP_NODE: Shape = {
    "machineType": None,
    "disks": [
        {
            **dict.fromkeys(("boot", "autoDelete", "type")),
            "initializeParams": dict.fromkeys(("diskSizeGb", "diskType", "sourceImage")),
        }
    ],
    "networkInterfaces": [{"network": None, "subnetwork": None, "accessConfigs": [{"name": None, "type": None}]}],
    "serviceAccounts": [{"email": None, "scopes": None}],
    "guestAccelerators": [{"acceleratorType": None, "acceleratorCount": None}],
    "metadata": {"items": [{"key": None, "value": None}]},
    "scheduling": dict.fromkeys(
        ("provisioningModel", "instanceTerminationAction", "onHostMaintenance", "automaticRestart")
    ),
    "labels": None,
    "tags": {"items": None},
}
CONTAINER: Shape = {
    **dict.fromkeys(("name", "image", "imagePullPolicy", "command", "args", "lifecycle")),
    "securityContext": {
        **dict.fromkeys(("privileged", "allowPrivilegeEscalation", "readOnlyRootFilesystem", "seccompProfile")),
        **dict.fromkeys(("runAsNonRoot", "runAsUser", "runAsGroup")),
        "capabilities": {"drop": None},
    },
    "resources": {"requests": None, "limits": None},
    "env": [{"name": None, "value": None, "valueFrom": {"secretKeyRef": None, "configMapKeyRef": None}}],
    "envFrom": [{"secretRef": None, "configMapRef": None}],
    "ports": None,
    "volumeMounts": [dict.fromkeys(("name", "mountPath", "readOnly", "subPath"))],
}
POD: Shape = {
    "metadata": {"labels": None, "annotations": None},
    "spec": {
        **dict.fromkeys(("restartPolicy", "serviceAccountName", "nodeSelector", "affinity", "imagePullSecrets")),
        **dict.fromkeys(("priorityClassName", "terminationGracePeriodSeconds", "volumes")),
        "automountServiceAccountToken": None,
        "securityContext": dict.fromkeys(("runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "seccompProfile")),
        "tolerations": [dict.fromkeys(("key", "operator", "value", "effect", "tolerationSeconds"))],
        "containers": [CONTAINER],
        "initContainers": [CONTAINER],
    },
}
RAY_JOB: Shape = {
    "apiVersion": None,
    "kind": None,
    "metadata": dict.fromkeys(("name", "namespace", "labels", "annotations")),
    "spec": {
        **dict.fromkeys(("entrypoint", "submissionMode", "backoffLimit", "activeDeadlineSeconds", "suspend")),
        **dict.fromkeys(("shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "runtimeEnvYAML", "jobId")),
        "submitterPodTemplate": POD,
        "rayClusterSpec": {
            "rayVersion": None,
            "enableInTreeAutoscaling": None,
            "autoscalerOptions": dict.fromkeys(
                (
                    *("version", "upscalingMode", "idleTimeoutSeconds", "resources", "env", "imagePullPolicy"),
                    "securityContext",
                )
            ),
            "authOptions": {"mode": None},
            "headGroupSpec": {"serviceType": None, "rayStartParams": None, "template": POD},
            "workerGroupSpecs": [
                {
                    **dict.fromkeys(("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts")),
                    **dict.fromkeys(("idleTimeoutSeconds", "rayStartParams")),
                    "template": POD,
                }
            ],
        },
    },
}
SPOT_LABELS = {
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "cloud.google.com/gke-spot": "true",
}


def faults(file: Path) -> list[str]:
    """Everything that is wrong with a cluster file; an empty list if nothing is.

    Raises: OSError if the file cannot be read.
    """
    text = file.read_text(encoding="utf-8")
    found = [
        f"line {number}: {what}; secrets come from the environment or from a secret store"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in LITERALS.items()
        if pattern.search(line)
    ]
    try:
        config, *policies = list(yaml.safe_load_all(text)) or [None]
    except yaml.YAMLError as error:
        return [*found, f"is no YAML: {' '.join(str(error).split())}"]
    if not isinstance(config, dict):
        return [*found, "must be a mapping: a file of Ray's cluster launcher, or a RayJob"]
    for rule in rules_for(config):
        found += rule(config)
    if rules_for(config) is JOB_RULES:
        found += network_policy(config, policies)
        found += [fault for policy in policies for rule in COMMON_RULES for fault in rule(mapping(policy))]
    elif policies:
        found.append("must be one document: only a RayJob has a NetworkPolicy beside it")
    return found


def rules_for(config: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules that a file must keep, by what kind of file it is."""
    if "kind" in config or "apiVersion" in config:
        return JOB_RULES
    return LOCAL_RULES if at(config, "provider", "type") == "local" else CLOUD_RULES


# Rules for every file.


def placeholders(config: dict[str, Any]) -> Iterator[str]:
    """What a person has to fill in, is."""
    left = {name for _, _, value in leaves(config) for name in re.findall(r"<[A-Z][A-Z_]*>", str(value))}
    yield from (f"{name} is not filled in" for name in sorted(left))


def no_secrets(config: dict[str, Any]) -> Iterator[str]:
    """No value is given to anything that is named like a secret."""
    for path, key, value in leaves(config):
        named = SECRET_NAME.search(key) and isinstance(value, str | int) and not isinstance(value, bool)
        if named or (isinstance(value, str) and ASSIGNED.search(value)):
            yield f"{path}: a secret; it comes from the environment or from a secret store"
    for path, entry in mappings(config):
        if "value" in entry and SECRET_NAME.search(str(entry.get("name", ""))):
            yield f"{path}: the secret {entry['name']} has a value; use valueFrom.secretKeyRef"


def closed_network(config: dict[str, Any]) -> Iterator[str]:
    """Nothing is open to the whole world."""
    for path, _, value in leaves(config):
        text = str(value)
        for everyone in re.findall(r"(?<![\d.])0\.0\.0\.0/0|(?<![0-9a-f:])::/0", text):
            yield f"{path}: {everyone} is the whole world; name your own address, such as 203.0.113.7/32"
        if re.search(r"--dashboard-host[= ](0\.0\.0\.0|::)", text):
            yield f"{path}: the dashboard would listen to everyone; leave --dashboard-host out, and use a tunnel"


def images(config: dict[str, Any]) -> Iterator[str]:
    """Every image is of the pinned Ray and Python, and is named by its digest: a tag may be pushed again."""
    wanted = f"{pins().get('ray')}-{PYTHON}"
    for path, key, value in leaves(config):
        if key != "image" and not key.endswith("_image"):
            continue
        named, _, digest = str(value).partition("@")
        name, _, tag = named.rpartition(":")
        if not re.match(rf"{re.escape(wanted)}(-|$)", tag):
            yield f"{path}: must have the tag {wanted}, as pinned in requirements.txt, got {str(value)!r}"
        elif "provider" in config and name != "rayproject/ray":
            yield f"{path}: must be rayproject/ray, got {name!r}"
        elif not re.fullmatch(r"sha256:[0-9a-f]{64}|<[A-Z_]+>", digest):
            yield f"{path}: must end in @sha256:DIGEST, which `docker buildx imagetools inspect {named}` shows"


def token(config: dict[str, Any]) -> Iterator[str]:
    """Nothing turns Ray's tokens off: whoever reaches its ports could run anything."""
    for path, _, value in leaves(config):
        for mode in re.findall(r"\bRAY_AUTH_MODE=[\"']?([^\s\"']*)", str(value)):
            if mode != "token":
                yield f"{path}: RAY_AUTH_MODE must be token, got {mode!r}"
    for path, entry in mappings(config):
        if entry.get("name") == "RAY_AUTH_MODE" and entry.get("value") != "token":
            yield f"{path}: RAY_AUTH_MODE must be token, got {entry.get('value')!r}"


def pinned_packages(config: dict[str, Any]) -> Iterator[str]:
    """Commands install what the files of pinned packages name, and nothing else."""
    known = pins()
    for path, _, value in leaves(config):
        if not isinstance(value, str):
            continue
        for name, version in re.findall(r"(\w+)\.__version__ == ['\"]([\w.]+)", value):
            pin = known.get(normal(name), version)
            if version != pin:
                yield f"{path}: {name} {version} is not the {pin} of requirements.txt"
        if re.search(r"nightly|ray-wheels|\.whl\b|/latest/", value):
            yield f"{path}: installs a nightly, latest or single wheel; install with --require-hashes -r FILE"
        for words in pip_installs(value):
            yield from (f"{path}: {fault}" for fault in install_faults(words))


# Rules for files of Ray's cluster launcher.


def provider(config: dict[str, Any]) -> Iterator[str]:
    """The provider is one that we have rules for, its zones are named, and stopped nodes cost nothing."""
    kind = at(config, "provider", "type")
    if kind not in PROVIDERS:
        yield f"provider.type: must be one of {', '.join(PROVIDERS)}, got {kind!r}"
    if not config.get("cluster_name"):
        yield "cluster_name: is missing"
    zones = [zone for zone in str(at(config, "provider", "availability_zone") or "").split(",") if zone.strip()]
    if kind == "aws" and len(zones) < 2:
        yield "provider.availability_zone: must name at least two zones, with commas: spot is often full in one"
    if kind == "gcp" and len(zones) != 1:
        yield "provider.availability_zone: must name one zone, Ray's provider for Google Cloud knows no list"
    if kind in ("aws", "gcp") and at(config, "provider", "cache_stopped_nodes") is not False:
        yield "provider.cache_stopped_nodes: must be false; stopped nodes go on costing their disks"
    if kind == "local" and (not at(config, "provider", "head_ip") or not at(config, "provider", "worker_ips")):
        yield "provider: must name head_ip and worker_ips"
    if kind == "local" and at(config, "provider", "head_ip") in sequence(at(config, "provider", "worker_ips")):
        yield "provider.worker_ips: the head cannot be a worker as well; it runs no trial"


def idle_timeout(config: dict[str, Any]) -> Iterator[str]:
    """Workers without work are given back soon."""
    low, high = IDLE_MINUTES
    minutes = config.get("idle_timeout_minutes")
    if not is_number(minutes) or not low <= minutes <= high:
        yield f"idle_timeout_minutes: must be between {low} and {high}, got {minutes!r}"


def docker(config: dict[str, Any]) -> Iterator[str]:
    """The container can do what Ray and torch need."""
    if not at(config, "docker", "image") or not at(config, "docker", "container_name"):
        yield "docker: must name image and container_name"
    shared = " ".join(map(str, sequence(at(config, "docker", "run_options"))))
    for option in ("--shm-size", "--ulimit nofile"):
        if option not in shared:
            yield f"docker.run_options: must give {option}"
    if "--gpus" not in " ".join(map(str, sequence(at(config, "docker", "worker_run_options")))):
        yield "docker.worker_run_options: must give --gpus, or trials see no GPU"


def token_file(config: dict[str, Any]) -> Iterator[str]:
    """Ray asks for a token, and every node gets it as a file, which `ps` and `docker inspect` do not show."""
    shared = " ".join(map(str, sequence(at(config, "docker", "run_options"))))
    if "RAY_AUTH_MODE=" not in shared:
        yield "docker.run_options: must give -e RAY_AUTH_MODE=token; Ray asks nobody without it"
    file = re.search(r"\bRAY_AUTH_TOKEN_PATH=(\S+)", shared)
    if not file or not any(file[1].startswith(f"{folder}/") for folder in mapping(config.get("file_mounts"))):
        yield "docker.run_options: must give -e RAY_AUTH_TOKEN_PATH=FILE, of a file in a folder of file_mounts"


def files(config: dict[str, Any]) -> Iterator[str]:
    """The checkout is copied, without environments, results and keys."""
    if not at(config, "file_mounts"):
        yield "file_mounts: must copy this checkout to the nodes"
    excluded = sequence(config.get("rsync_exclude"))
    for name in (".venv", "runs", "*.pem", ".env"):
        if name not in excluded:
            yield f"rsync_exclude: must hold {name}"
    if ".gitignore" not in sequence(config.get("rsync_filter")):
        yield "rsync_filter: must hold .gitignore"


def commands(config: dict[str, Any]) -> Iterator[str]:
    """Our commands stand in place of the defaults, which install a nightly wheel and open the dashboard."""
    setup = [str(command) for command in sequence(config.get("setup_commands"))]
    if not setup:
        yield "setup_commands: are missing; the defaults install a nightly wheel of Ray"
    installed = [words for command in setup for words in pip_installs(command)]
    for file in ("requirements.txt", "requirements-cuda.txt"):
        if setup and not any(file in words for words in installed):
            yield f"setup_commands: must install {file}"
    if setup and not any("." in words for words in installed):
        yield "setup_commands: must install this project with -e ."
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        if not any("ray start" in str(command) for command in sequence(config.get(name))):
            yield f"{name}: must start Ray; the defaults open the dashboard to everyone"


def cloud_head(config: dict[str, Any]) -> Iterator[str]:
    """The head is on demand, is one, and has nothing that a trial could use."""
    name = config.get("head_node_type")
    head = node_types(config).get(str(name))
    if head is None:
        yield f"head_node_type: {name!r} is none of available_node_types"
        return
    path = f"available_node_types.{name}"
    if at(head, "resources", "CPU") != 0 or at(head, "resources", "GPU") != 0:
        yield f"{path}.resources: must be CPU: 0 and GPU: 0, or trials run on the head"
    if head.get("max_workers") != 0:
        yield f"{path}.max_workers: must be 0, or Ray may make more nodes of the head's type"
    if is_spot(config, head):
        yield f"{path}.node_config: the head must be on demand; with it the driver would be lost"


def cloud_workers(config: dict[str, Any]) -> Iterator[str]:
    """GPU workers are on spot, and the same on demand stands in when spot is full."""
    workers = {name: node for name, node in node_types(config).items() if name != config.get("head_node_type")}
    path = "available_node_types"
    for name, node in workers.items():
        if not is_number(at(node, "resources", "CPU")) or not is_number(at(node, "resources", "GPU")):
            yield f"{path}.{name}.resources: must name CPU and GPU"
        if node.get("min_workers") != 0:
            yield f"{path}.{name}.min_workers: must be 0, or it costs while no trial waits"
    gpu = {name: node for name, node in workers.items() if at(node, "resources", "GPU")}
    spot = {name: node for name, node in gpu.items() if is_spot(config, node)}
    rest = {name: node for name, node in gpu.items() if name not in spot}
    if not spot:
        yield f"{path}: no worker with a GPU is on spot"
    for name, node in spot.items():
        same = [other for other in rest.values() if other.get("resources") == node.get("resources")]
        if not same:
            yield f"{path}.{name}: no type on demand has the same resources, to stand in when spot is full"
        elif any(number(node.get("priority")) <= number(other.get("priority")) for other in same):
            yield f"{path}.{name}.priority: must be higher than that of the type on demand, or spot is not taken first"
    total, most = config.get("max_workers"), sum(number(node.get("max_workers")) for node in spot.values())
    if not is_number(total) or total <= most:
        yield (
            f"max_workers: must be more than the {most} that may be on spot: Ray repeats a request for spot that "
            "fails, and asks for a type on demand only beyond that"
        )


def node_configs(config: dict[str, Any]) -> Iterator[str]:
    """`node_config` goes to the cloud as it is: Ray checks nothing in it."""
    kind = at(config, "provider", "type")
    shape = {"aws": AWS_NODE, "gcp": GCP_NODE}.get(str(kind))
    for name, node in node_types(config).items():
        path = f"available_node_types.{name}.node_config"
        node_config = node.get("node_config")
        if shape is not None:
            yield from unknown(node_config, shape, path)
        head = name == config.get("head_node_type")
        check = {"aws": aws_node, "gcp": gcp_node}.get(str(kind))
        if check:
            yield from (f"{path}.{fault}" for fault in check(node_config, head))


def aws_node(node: Any, head: bool) -> Iterator[str]:
    """What every node on AWS needs."""
    for key in ("InstanceType", "ImageId"):
        if not at(node, key):
            yield f"{key}: is missing" + ("; Ray's default image is too old for this torch" if key == "ImageId" else "")
    if not at(node, "SecurityGroupIds"):
        yield "SecurityGroupIds: are missing; the group that Ray would make opens SSH to the whole world"
    if not at(node, "IamInstanceProfile"):
        yield "IamInstanceProfile: is missing; without a role the node needs keys for S3"
    sizes = [at(disk, "Ebs", "VolumeSize") for disk in sequence(at(node, "BlockDeviceMappings"))]
    if not any(is_number(size) and size >= ROOT_GB for size in sizes):
        yield f"BlockDeviceMappings: must give the root volume a VolumeSize of at least {ROOT_GB}"
    market = at(node, "InstanceMarketOptions", "MarketType")
    if market not in (None, "spot"):
        yield f"InstanceMarketOptions.MarketType: must be spot, got {market!r}"


def gcp_node(node: Any, head: bool) -> Iterator[str]:
    """What every node on Google Cloud needs; the account of the head is Ray's own."""
    if not at(node, "machineType"):
        yield "machineType: is missing"
    if not any(at(each, "subnetwork") for each in sequence(at(node, "networkInterfaces"))):
        yield "networkInterfaces: must name a subnetwork; the network `default` opens SSH to the whole world"
    if not head and not any(at(each, "email") for each in sequence(at(node, "serviceAccounts"))):
        yield "serviceAccounts: are missing; without an account the node needs keys for the bucket"
    sizes = [at(disk, "initializeParams", "diskSizeGb") for disk in sequence(at(node, "disks"))]
    if not any(is_number(size) and size >= ROOT_GB for size in sizes):
        yield f"disks: must give the boot disk a diskSizeGb of at least {ROOT_GB}"
    model = at(node, "scheduling", "provisioningModel")
    if model not in (None, "SPOT", "STANDARD"):
        yield f"scheduling.provisioningModel: must be SPOT or STANDARD, got {model!r}"


def local_head(config: dict[str, Any]) -> Iterator[str]:
    """Nothing on the head can be used by a trial; a file with a list of hosts can only say so in the command."""
    command = " ".join(map(str, sequence(config.get("head_start_ray_commands"))))
    for option in ("--num-cpus=0", "--num-gpus=0"):
        if not re.search(rf"{option}(\s|$)", command):
            yield f"head_start_ray_commands: must give {option}, or trials run on the head"


# Rules for RayJobs.


def job_shape(config: dict[str, Any]) -> Iterator[str]:
    """What KubeRay needs is there, and no key is misspelled."""
    if config.get("apiVersion") != "ray.io/v1" or config.get("kind") != "RayJob":
        yield f"must be a RayJob of ray.io/v1, got {config.get('kind')!r} of {config.get('apiVersion')!r}"
    yield from unknown(config, RAY_JOB, "")
    cluster = ("spec", "rayClusterSpec")
    for path in (
        *(("metadata", "name"), ("spec", "entrypoint"), (*cluster, "rayVersion"), (*cluster, "workerGroupSpecs")),
        (*cluster, "headGroupSpec", "template", "spec", "containers"),
    ):
        if not at(config, *path):
            yield f"{'.'.join(path)}: is missing"
    if at(config, *cluster, "rayVersion") != pins().get("ray"):
        yield f"spec.rayClusterSpec.rayVersion: must be {pins().get('ray')}, as pinned in requirements.txt"
    if at(config, *cluster, "authOptions", "mode") != "token":
        yield "spec.rayClusterSpec.authOptions.mode: must be token; who reaches Ray's ports could run anything"
    if at(config, "spec", "entrypoint") and "--address auto" not in str(at(config, "spec", "entrypoint")):
        yield "spec.entrypoint: must give --address auto, or the study starts a Ray of its own in the head"


def job_ends(config: dict[str, Any]) -> Iterator[str]:
    """Nothing goes on costing after the study, or while workers have nothing to do."""
    if at(config, "spec", "shutdownAfterJobFinishes") is not True:
        yield "spec.shutdownAfterJobFinishes: must be true, or the cluster stays when the study is done"
    if at(config, "spec", "rayClusterSpec", "enableInTreeAutoscaling") is not True:
        yield "spec.rayClusterSpec.enableInTreeAutoscaling: must be true, or no worker starts"
    low, high = (minutes * 60 for minutes in IDLE_MINUTES)
    path = ("spec", "rayClusterSpec", "autoscalerOptions", "idleTimeoutSeconds")
    seconds = at(config, *path)
    if not is_number(seconds) or not low <= seconds <= high:
        yield f"{'.'.join(path)}: must be between {low} and {high}, got {seconds!r}"


def job_pods(config: dict[str, Any]) -> Iterator[str]:
    """Head and workers: where they may run, as whom, and with which memory to share."""
    for path, group in groups(config):
        for key, value in mapping(group.get("rayStartParams")).items():
            if not isinstance(value, str):
                yield f"{path}.rayStartParams.{key}: must be text, put quotes around {value!r}"
        pod = mapping(at(group, "template", "spec"))
        if not pod.get("serviceAccountName"):
            yield f"{path}.template.spec.serviceAccountName: is missing; without it the pod needs keys for the bucket"
        if pod.get("restartPolicy") != "Never":
            yield f"{path}.template.spec.restartPolicy: must be Never, Ray's autoscaler replaces pods itself"
        mounts = [at(each, "mountPath") for each in sequence(at(first_container(group), "volumeMounts"))]
        if "/dev/shm" not in mounts:
            yield f"{path}.template.spec: must mount memory at /dev/shm"


def job_privileges(config: dict[str, Any]) -> Iterator[str]:
    """Pods run as a user without privileges, and only the head speaks to Kubernetes."""
    head = True
    for path, group in groups(config):
        path, pod = f"{path}.template.spec", mapping(at(group, "template", "spec"))
        if at(pod, "securityContext", "runAsNonRoot") is not True:
            yield f"{path}.securityContext.runAsNonRoot: must be true"
        if at(pod, "securityContext", "seccompProfile", "type") != "RuntimeDefault":
            yield f"{path}.securityContext.seccompProfile.type: must be RuntimeDefault"
        if not head and pod.get("automountServiceAccountToken") is not False:
            yield f"{path}.automountServiceAccountToken: must be false; a trial has nothing to ask of Kubernetes"
        for kind in ("initContainers", "containers"):
            for number, container in enumerate(sequence(pod.get(kind))):
                yield from without_privileges(container, f"{path}.{kind}[{number}]")
        head = False
    sidecar = ("spec", "rayClusterSpec", "autoscalerOptions")
    yield from without_privileges(at(config, *sidecar), ".".join(sidecar))


def without_privileges(container: Any, path: str) -> Iterator[str]:
    """What a container may do that it does not need."""
    for key in ("privileged", "allowPrivilegeEscalation"):
        if at(container, "securityContext", key) is not False:
            yield f"{path}.securityContext.{key}: must be false"
    if "ALL" not in sequence(at(container, "securityContext", "capabilities", "drop")):
        yield f"{path}.securityContext.capabilities.drop: must be [ALL]"


def network_policy(job: dict[str, Any], others: Sequence[Any]) -> Iterator[str]:
    """Every pod of the job is behind a NetworkPolicy of the same file that lets in only who is named.

    Args: others: the documents beside the RayJob.
    """
    chosen: list[dict[str, Any]] = []
    for policy in map(mapping, others):
        if policy.get("kind") != "NetworkPolicy":
            yield f"must hold a RayJob and NetworkPolicies, got {policy.get('kind')!r}"
            continue
        chosen.append(mapping(at(policy, "spec", "podSelector", "matchLabels")))
        if "Ingress" not in sequence(at(policy, "spec", "policyTypes")):
            yield "NetworkPolicy.spec.policyTypes: must hold Ingress"
        for number, rule in enumerate(sequence(at(policy, "spec", "ingress"))):
            if not sequence(at(rule, "from")) or not all(map(peer_is_named, sequence(at(rule, "from")))):
                yield f"NetworkPolicy.spec.ingress[{number}].from: must name who may come in, by podSelector"
    for path, group in groups(job):
        labels = mapping(at(group, "template", "metadata", "labels"))
        if not any(labels.items() >= selector.items() for selector in chosen):
            yield f"{path}.template.metadata.labels: no NetworkPolicy in this file selects these pods"


def peer_is_named(peer: Any) -> bool:
    """Whether an entry of `from` names some pods, and not everyone."""
    return bool(at(peer, "podSelector", "matchLabels"))


def job_head(config: dict[str, Any]) -> Iterator[str]:
    """The head is on demand, has nothing that a trial could use, and gets its secrets by reference."""
    path, head = next(groups(config))
    for key in ("num-cpus", "num-gpus"):
        if str(at(head, "rayStartParams", key)) != "0":
            yield f'{path}.rayStartParams.{key}: must be "0", or trials run on the head'
    if gpus_of(head):
        yield f"{path}: the head asks for a GPU that no trial may use"
    if on_spot_nodes(head):
        yield f"{path}.template.spec.nodeSelector: the head must be on demand; with it the driver would be lost"
    environment = [mapping(each) for each in sequence(at(first_container(head), "env"))]
    for name in ("ARDMVC_STUDY_DB", "MLFLOW_TRACKING_URI"):
        if not any(each.get("name") == name and at(each, "valueFrom", "secretKeyRef", "key") for each in environment):
            yield f"{path}: must get {name} by valueFrom.secretKeyRef"


def job_workers(config: dict[str, Any]) -> Iterator[str]:
    """GPU workers are on spot, and a group on demand stands in when spot is full."""
    workers = list(groups(config))[1:]
    for path, group in workers:
        low, high = group.get("minReplicas"), group.get("maxReplicas")
        if low != 0:
            yield f"{path}.minReplicas: must be 0, or it costs while no trial waits"
        if not is_number(high) or high < 1:
            yield f"{path}.maxReplicas: must be at least 1, got {high!r}"
        if not gpus_of(group):
            yield f"{path}: asks for no nvidia.com/gpu"
    kinds = [on_spot_nodes(group) for _, group in workers]
    if True not in kinds:
        yield "spec.rayClusterSpec.workerGroupSpecs: no group is on spot"
    if False not in kinds:
        yield "spec.rayClusterSpec.workerGroupSpecs: no group is on demand, to stand in when spot is full"
    if True in kinds and False in kinds and not kinds[0]:
        yield "spec.rayClusterSpec.workerGroupSpecs: the group on spot must be the first, or it is not taken first"


COMMON_RULES: tuple[Rule, ...] = (placeholders, no_secrets, closed_network, token, images, pinned_packages)
LAUNCHER_RULES: tuple[Rule, ...] = (*COMMON_RULES, provider, idle_timeout, docker, token_file, files, commands)
CLOUD_RULES: tuple[Rule, ...] = (*LAUNCHER_RULES, cloud_head, cloud_workers, node_configs)
LOCAL_RULES: tuple[Rule, ...] = (*LAUNCHER_RULES, local_head)
JOB_RULES: tuple[Rule, ...] = (*COMMON_RULES, job_shape, job_ends, job_pods, job_privileges, job_head, job_workers)


# What the rules read with. A wrong type counts as absent: Ray's schema, or `unknown`, says what type it should be.


def at(value: Any, *keys: str) -> Any:
    """The entry under nested keys; None where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether the value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: Any) -> float:
    """The value if it is a number, else 0."""
    return value if is_number(value) else 0


def leaves(value: Any, path: str = "", key: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path, last key, value) of everything that is neither mapping nor list; an entry of a list has the list's key."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from leaves(entry, f"{path}.{name}".lstrip("."), str(name))
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from leaves(entry, f"{path}[{number}]", key)
    else:
        yield path, key, value


def mappings(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, mapping) of every mapping in a value."""
    if isinstance(value, dict):
        yield path, value
        for name, entry in value.items():
            yield from mappings(entry, f"{path}.{name}".lstrip("."))
    for number, entry in enumerate(sequence(value)):
        yield from mappings(entry, f"{path}[{number}]")


def unknown(value: Any, shape: Shape, path: str) -> Iterator[str]:
    """Keys that a shape does not have, each with the nearest that it has."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{path}: must be a mapping"
            return
        for key, entry in value.items():
            name = f"{path}.{key}".lstrip(".")
            if key in shape:
                yield from unknown(entry, shape[key], name)
            else:
                near = difflib.get_close_matches(str(key), shape, n=1)
                yield f"{name}: unknown key" + (f"; nearest: '{near[0]}'" if near else f"; known: {', '.join(shape)}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{path}: must be a list"
        for number, entry in enumerate(sequence(value)):
            yield from unknown(entry, shape[0], f"{path}[{number}]")


def node_types(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every node type of a launcher file."""
    return {str(name): mapping(node) for name, node in mapping(config.get("available_node_types")).items()}


def is_spot(config: Mapping[str, Any], node: Mapping[str, Any]) -> bool:
    """Whether a node type may be taken away by the cloud."""
    node_config = node.get("node_config")
    if at(config, "provider", "type") == "aws":
        return at(node_config, "InstanceMarketOptions", "MarketType") == "spot"
    return at(node_config, "scheduling", "provisioningModel") == "SPOT"


def groups(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, group) of the head, then of every worker group of a RayJob."""
    cluster = at(config, "spec", "rayClusterSpec")
    yield "spec.rayClusterSpec.headGroupSpec", mapping(at(cluster, "headGroupSpec"))
    for number, group in enumerate(sequence(at(cluster, "workerGroupSpecs"))):
        yield f"spec.rayClusterSpec.workerGroupSpecs[{number}]", mapping(group)


def first_container(group: Mapping[str, Any]) -> dict[str, Any]:
    """The container that Ray runs in: KubeRay takes the first."""
    containers = sequence(at(group, "template", "spec", "containers"))
    return mapping(containers[0]) if containers else {}


def gpus_of(group: Mapping[str, Any]) -> bool:
    """Whether a group's pods ask for a GPU."""
    return str(at(first_container(group), "resources", "limits", "nvidia.com/gpu") or "0") != "0"


def on_spot_nodes(group: Mapping[str, Any]) -> bool:
    """Whether a group's pods run on nodes that the cloud may take away."""
    selector = mapping(at(group, "template", "spec", "nodeSelector"))
    return any(selector.get(label) == value for label, value in SPOT_LABELS.items())


def normal(name: str) -> str:
    """A package name in the one spelling that all of them compare equal in."""
    return re.sub(r"[-_.]+", "-", name).lower()


@lru_cache
def pins() -> dict[str, str]:
    """Package → version of the files of pinned packages. Raises: OSError outside a checkout, where clusters start."""
    text = "".join((ROOT / file).read_text(encoding="utf-8") for file in REQUIREMENTS)
    return {normal(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


def pip_installs(command: str) -> Iterator[list[str]]:
    """The words after `pip install`, of every such call in a shell command."""
    for part in re.split(r"&&|\|\|?|;|\n", command):
        try:
            words = shlex.split(part)
        except ValueError:  # half of a quoted text
            continue
        for place, word in enumerate(words[:-1]):
            if re.fullmatch(r"(.*/)?pip[\d.]*", word) and words[place + 1] == "install":
                yield words[place + 2 :]


def install_faults(words: Sequence[str]) -> Iterator[str]:
    """What a call of `pip install` could bring besides what the files of pinned packages name, hash by hash."""
    files, rest = 0, iter(words)
    for word in rest:
        if word in ("-r", "--requirement"):
            file = next(rest, "")
            files += 1
            if not any(f"/{file}".endswith(f"/{name}") for name in REQUIREMENTS):
                yield f"{file!r} is no file of pinned packages; there are {', '.join(REQUIREMENTS)}"
        elif word in ("-U", "--upgrade", "--pre"):
            yield f"pip install {word} takes what is newest; leave it out"
        elif "://" in word:
            yield "pip install takes a package from an address; install with --require-hashes -r FILE"
        elif re.match(r"[./]", word):
            if not {"--no-deps", "--no-build-isolation"} <= set(words):
                yield f"pip install {word} needs --no-deps --no-build-isolation, or it brings packages without a hash"
        elif not word.startswith("-"):
            yield f"{word} has no hash; install with --require-hashes -r FILE"
    if files and "--require-hashes" not in words:
        yield "pip install without --require-hashes"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the faults of files. Returns: 0 without any, else 2."""
    parser = argparse.ArgumentParser(
        prog="python -m study.clusters.check", description="Prints what is wrong in files."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="of Ray's cluster launcher, or a RayJob")
    found = 0
    for file in parser.parse_args(argv).files:
        try:
            lines = faults(file)
        except (OSError, UnicodeDecodeError) as error:
            lines = [f"cannot be read: {error}"]
        for line in lines:
            print(f"{file}: {line}", file=sys.stderr)
        found += len(lines)
    return 2 if found else 0


if __name__ == "__main__":
    sys.exit(main())

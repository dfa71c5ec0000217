"""What is wrong with a cluster file: `python -m study.clusters.check FILE…` prints the faults.

For files of Ray's cluster launcher (AWS, Google Cloud, own hosts) and RayJobs of KubeRay. A fault is a line: where,
what is wrong, what would work. Nothing here talks to a cloud, and no message repeats a secret. What one place must
say is in schema.yaml; here is what takes more than one.
"""

import argparse
import difflib
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = (
    *("requirements.txt", "requirements-cuda.txt", "requirements-dev.txt"),
    *("mlflow/requirements.txt", "study/clusters/requirements.txt"),
)
"""The files of pinned packages, with a hash for every file that may be installed."""
PYTHON = "py311"
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
TYPES = {"object": "a mapping", "array": "a list", "string": "text", "integer": "a whole number", "number": "a number"}


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
        # The text of a stream is not repeated in messages. As JSON, every key is text, and every number is finite.
        documents = json.dumps(list(yaml.safe_load_all(io.StringIO(text))), default=str, allow_nan=False)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        return [*found, f"is no YAML of a cluster: {' '.join(str(error).split())}"]
    config, *policies = json.loads(documents) or [None]
    if not isinstance(config, dict):
        return [*found, "must be a mapping: a file of Ray's cluster launcher, or a RayJob"]
    for rule in rules_for(config):
        found += rule(config)
    if kind_of(config) == "job":
        found += network_policy(config, policies)
        found += [fault for policy in policies for rule in COMMON_RULES for fault in rule(mapping(policy))]
    elif policies:
        found.append("must be one document: only a RayJob has a NetworkPolicy beside it")
    return list(dict.fromkeys(found))


def kind_of(config: Mapping[str, Any]) -> str:
    """`job` for a RayJob, else the type of the provider."""
    return "job" if "kind" in config or "apiVersion" in config else str(at(config, "provider", "type"))


def rules_for(config: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules that a file must keep, by what kind of file it is."""
    return {"job": JOB_RULES, "local": LOCAL_RULES}.get(kind_of(config), CLOUD_RULES)


# What schemas say.


@lru_cache
def schemas() -> dict[str, Any]:
    """Our rules and shapes, and Ray's schema of a launcher file."""
    ours = yaml.safe_load(Path(__file__).with_name("schema.yaml").read_text(encoding="utf-8"))
    ray = Path(str(distribution("ray").locate_file("ray/autoscaler/ray-schema.json")))
    return {**ours, "ray": json.loads(ray.read_text(encoding="utf-8"))}


def anywhere(config: dict[str, Any]) -> Iterator[str]:
    """No secret has a value, nothing is open to everyone, and nothing is newer than what is pinned."""
    for path, key, value in walk(config):
        text, name = value if isinstance(value, str) else "", str(at(value, "name"))
        yield from (f"{path}: {said}" for pattern, said in schemas()["anywhere"].items() if re.search(pattern, text))
        named = SECRET_NAME.search(key) and isinstance(value, str | int) and not isinstance(value, bool)
        if named or ASSIGNED.search(text):
            yield f"{path}: a secret; it comes from the environment or from a secret store"
        if SECRET_NAME.search(name) and "value" in value:
            yield f"{path}: the secret {name} has a value; use valueFrom.secretKeyRef"
        if name == "RAY_AUTH_MODE" and at(value, "value") != "token":
            yield f"{path}: RAY_AUTH_MODE must be token"


def values(config: dict[str, Any]) -> Iterator[str]:
    """Every place says what it must."""
    for name in ("launcher", kind_of(config)) if kind_of(config) != "job" else ("job",):
        yield from broken(config, name)


def broken(value: Any, name: str, path: str = "") -> Iterator[str]:
    """What breaks the rules of a name in schema.yaml."""
    for place, wanted in schemas()["rules"].get(name, {}).items():
        for where, entry in places(value, place.split("."), path):
            for rule in wanted if isinstance(wanted, list) else [wanted]:
                if isinstance(rule, str):
                    yield from broken(entry, rule, where)
                elif not Draft202012Validator(rule).is_valid(entry):
                    yield f"{where}: {rule['title'].replace('{}', repr(entry))}"


def shape(config: dict[str, Any]) -> Iterator[str]:
    """Every key is known, and what Ray's schema knows has the right type."""
    known = closed(schemas()["shapes"].get(kind_of(config)))
    yield from misshapen(config, known if kind_of(config) == "job" else schemas()["ray"])
    for path, node in places(config, ["available_node_types", "*", "node_config"]):
        yield from misshapen(node, known, path)


def closed(shape: Any) -> Any:
    """The JSON schema of a shape: known keys, or a list of one shape for every entry, or None for anything."""
    if isinstance(shape, dict):
        properties = {key: closed(entry) for key, entry in shape.items()}
        return {"type": "object", "properties": properties, "additionalProperties": False}
    return {"type": "array", "items": closed(shape[0])} if isinstance(shape, list) else {}


def misshapen(value: Any, schema: Any, path: str = "") -> Iterator[str]:
    """What a JSON schema refuses, in words that do not repeat the value, which may be a secret."""
    for error in Draft202012Validator(schema).iter_errors(value):
        where, wanted = path, error.validator_value
        for key in error.absolute_path:
            where = joined(where, key)
        if error.validator == "additionalProperties":
            known = error.schema["properties"]
            for key in [key for key in error.instance if key not in known]:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; nearest: '{near[0]}'" if near else f"; known: {', '.join(known)}"
                yield f"{joined(where, key)}: unknown key{hint}"
        elif error.validator == "required":
            yield from (f"{joined(where, key)}: is missing" for key in wanted if key not in error.instance)
        elif error.validator == "type" and str(wanted) in TYPES:
            yield f"{where}: must be {TYPES[wanted]}"
        else:
            yield f"{where}: must keep {error.validator}: {json.dumps(wanted)}"


# Rules for every file.


def placeholders(config: dict[str, Any]) -> Iterator[str]:
    """What a person has to fill in, is."""
    left = {name for _, _, value in leaves(config) for name in re.findall(r"<[A-Z][A-Z_]*>", str(value))}
    yield from (f"{name} is not filled in" for name in sorted(left))


def images(config: dict[str, Any]) -> Iterator[str]:
    """Every image is of the pinned Ray and Python, and is named by its digest: a tag may be pushed again."""
    wanted = f"{pins().get('ray')}-{PYTHON}"
    for path, key, value in leaves(config):
        if key == "rayVersion" and value != pins().get("ray"):
            yield f"{path}: must be {pins().get('ray')}, as pinned in requirements.txt"
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
        for words in pip_installs(value):
            yield from (f"{path}: {fault}" for fault in install_faults(words))


# Rules for files of Ray's cluster launcher.


def token_file(config: dict[str, Any]) -> Iterator[str]:
    """Every node gets Ray's token as a file, which `ps` and `docker inspect` do not show."""
    shared = " ".join(map(str, sequence(at(config, "docker", "run_options"))))
    file = re.search(r"\bRAY_AUTH_TOKEN_PATH=(\S+)", shared)
    if not file or not any(file[1].startswith(f"{folder}/") for folder in mapping(config.get("file_mounts"))):
        yield "docker.run_options: must give -e RAY_AUTH_TOKEN_PATH=FILE, of a file in a folder of file_mounts"


def commands(config: dict[str, Any]) -> Iterator[str]:
    """Our commands stand in place of the defaults, which install a nightly wheel."""
    setup = [str(command) for command in sequence(config.get("setup_commands"))]
    installed = [words for command in setup for words in pip_installs(command)]
    for file in ("requirements.txt", "requirements-cuda.txt"):
        if setup and not any(file in words for words in installed):
            yield f"setup_commands: must install {file}"
    if setup and not any("." in words for words in installed):
        yield "setup_commands: must install this project with -e ."


def local_head(config: dict[str, Any]) -> Iterator[str]:
    """The head is no worker."""
    if at(config, "provider", "head_ip") in sequence(at(config, "provider", "worker_ips")):
        yield "provider.worker_ips: the head cannot be a worker as well; it runs no trial"


def cloud_nodes(config: dict[str, Any]) -> Iterator[str]:
    """No trial runs on the head, GPU workers are on spot, and the same on demand stands in when spot is full."""
    nodes = dict(places(config, ["available_node_types", "*"]))
    head = f"available_node_types.{config.get('head_node_type')}"
    if head not in nodes:
        yield f"head_node_type: {config.get('head_node_type')!r} is none of available_node_types"
    for path, node in nodes.items():
        for name in ("head",) if path == head else ("worker", f"{kind_of(config)} worker"):
            yield from broken(node, name, path)
    gpu = {path: node for path, node in nodes.items() if path != head and at(node, "resources", "GPU")}
    taken = Draft202012Validator(schemas()["spot"])
    spot = {path: node for path, node in gpu.items() if taken.is_valid(at(node, "node_config"))}
    if not spot:
        yield "available_node_types: no worker with a GPU is on spot"
    for path, node in spot.items():
        rest = [other for name, other in gpu.items() if name not in spot]
        same = [other for other in rest if at(other, "resources") == at(node, "resources")]
        if not same:
            yield f"{path}: no type on demand has the same resources, to stand in when spot is full"
        elif any(number(at(node, "priority")) <= number(at(other, "priority")) for other in same):
            yield f"{path}.priority: must be higher than that of the type on demand, or spot is not taken first"
    most = sum(number(at(node, "max_workers")) for node in spot.values())
    if number(config.get("max_workers")) <= most:
        yield (
            f"max_workers: must be more than the {most} that may be on spot: Ray repeats a request for spot that "
            "fails, and asks for a type on demand only beyond that"
        )


def network_policy(job: dict[str, Any], others: Sequence[Any]) -> Iterator[str]:
    """Every pod of the job is behind a NetworkPolicy of the same file that lets in only who is named.

    Args: others: the documents beside the RayJob.
    """
    for position, policy in enumerate(others, 2):
        yield from broken(policy, "policy", f"document {position}")
    chosen = [mapping(at(policy, "spec", "podSelector", "matchLabels")) for policy in others]
    for group in ("headGroupSpec", "workerGroupSpecs.*"):
        for path, labels in places(job, f"spec.rayClusterSpec.{group}.template.metadata.labels".split(".")):
            if not any(mapping(labels).items() >= selector.items() for selector in chosen):
                yield f"{path}: no NetworkPolicy in this file selects these pods"


COMMON_RULES: tuple[Rule, ...] = (placeholders, anywhere, images, pinned_packages)
JOB_RULES: tuple[Rule, ...] = (*COMMON_RULES, shape, values)
LAUNCHER_RULES: tuple[Rule, ...] = (*COMMON_RULES, shape, values, token_file, commands)
CLOUD_RULES: tuple[Rule, ...] = (*LAUNCHER_RULES, cloud_nodes)
LOCAL_RULES: tuple[Rule, ...] = (*LAUNCHER_RULES, local_head)


# What the rules read with. A wrong type counts as absent: `shape` says what type it should be.


def at(value: Any, *keys: str | int) -> Any:
    """The entry under nested keys and indices; None where there is none."""
    for key in keys:
        if isinstance(value, list) and isinstance(key, int):
            value = value[key] if key < len(value) else None
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def places(value: Any, keys: Sequence[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of all that nested keys name: `*` is every entry, and None stands for what is not there."""
    if not keys:
        yield path, value
        return
    for key in names(value) if keys[0] == "*" else [int(keys[0]) if keys[0].isdigit() else keys[0]]:
        yield from places(at(value, key), keys[1:], joined(path, key))


def names(value: Any) -> list[Any]:
    """The keys of a mapping, or the indices of a list."""
    return list(value) if isinstance(value, dict) else list(range(len(sequence(value))))


def joined(path: str, key: str | int) -> str:
    """The path of an entry."""
    return f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}".lstrip(".")


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def number(value: Any) -> float:
    """The value if it is a number, else 0."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


def walk(value: Any, path: str = "", key: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path, last key, value) of a value and of everything in it; an entry of a list has the list's key."""
    yield path, key, value
    for name in names(value):
        yield from walk(value[name], joined(path, name), str(name) if isinstance(value, dict) else key)


def leaves(value: Any) -> Iterator[tuple[str, str, Any]]:
    """(path, last key, value) of everything that is neither mapping nor list."""
    return (each for each in walk(value) if not isinstance(each[2], dict | list))


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
    parser = argparse.ArgumentParser("python -m study.clusters.check", description="Prints what is wrong in files.")
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

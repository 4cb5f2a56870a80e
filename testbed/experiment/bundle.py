"""The files that trials use, packed into one folder and found again there: for reruns, artefacts and other machines.

Layout of a content folder:

    nodes/models/catalogue.yaml     whole; weights (and builder files) of the models that the trials use, and of their codecs
    nodes/profiles/NAME.yaml        compute profiles that they use
    files/<first 12 of sha256>/NAME traces, logs, policy files, profiles by path, a user's data set and model file

Data sets that the testbed knows by name are not packed (`testbed data get`).
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed.errors import InputError
from testbed.experiment.content import Content, find_upwards
from testbed.experiment.trials import Trial, plan_experiment
from testbed.inference.catalogue import ModelInfo
from testbed.schema.scenario import Scenario

CATALOGUE = "nodes/models/catalogue.yaml"
_LEAVE_OUT = "put it back, or leave the content out with --no-content"
_DATE = (1980, 1, 1, 0, 0, 0)  # the same files make the same archive, byte for byte


@dataclass(frozen=True)
class Recipe:
    """What a trial was made of: resolved configuration, hashes of the files that it names, its scenario file, its repeat.

    own_model: the entry of a user's model, as it was measured when the trial was planned.
    """

    config: Mapping[str, Any]
    files: Mapping[str, str]
    source: Path
    repeat: int
    own_model: Mapping[str, Any] | None = None

    @classmethod
    def of_trial(cls, trial: Trial) -> Recipe:
        """Of a planned trial."""
        own_model = None if trial.own_model is None else trial.own_model.model_dump(mode="json")
        return cls(trial.config(), trial.content_sha256, trial.source.resolve(), trial.repeat, own_model)

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any], file: Path) -> Recipe:
        """Of a finished trial. Raises InputError when the manifest lacks a part."""
        missing = [key for key in ("config", "files", "source", "repeat") if key not in manifest]
        if missing:
            raise InputError("is not the manifest of a trial", file=file, key=missing[0],
                             remedy="give RUN/HASH/REPEAT/manifest.json of a finished trial")
        return cls(manifest["config"], manifest["files"], Path(manifest["source"]), int(manifest["repeat"]),
                   manifest.get("own_model"))


def pack(recipes: Iterable[Recipe], folder: Path) -> None:
    """Copy what the given trials use into `folder`.

    Raises InputError when a file is no longer what it was for the trial, or when two trials use different catalogues.
    """
    packed: set[str] = set()
    for recipe in recipes:
        names = {f"{name} {sha256}" for name, sha256 in recipe.files.items()}
        if names <= packed:
            continue
        packed |= names
        scenario = Scenario.model_validate({**recipe.config, "catalogue": str(_catalogue(recipe, None))})
        content = Content.of(scenario, recipe.source, ModelInfo.model_validate(recipe.own_model) if recipe.own_model else None)
        for name, sha256 in recipe.files.items():
            if content.sha256.get(name) != sha256:
                raise InputError("is not what it was for the trial, and cannot be packed", file=name, remedy=_LEAVE_OUT)
        _pack_catalogue(content, recipe.files, folder)
        for name, sha256 in recipe.files.items():
            path = Path(_path(name))
            if path.is_absolute():
                target = folder / _place(name, sha256)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(path, target, dirs_exist_ok=True) if path.is_dir() else shutil.copyfile(path, target)


def plan_again(recipe: Recipe, scenario_file: Path, content: Path | None = None) -> tuple[Trial, dict[str, str]]:
    """Plan the trial of a recipe once more; a scenario file is written for it.

    Files are taken from the folder `content` where it has them, else from where the configuration names them. Returns the
    trial, and a mapping of places in its configuration to those in the recipe's. Raises InputError.
    """
    places = {}
    for name, sha256 in recipe.files.items():
        path, packed = _path(name), None if content is None else content / _place(name, sha256)
        if packed is not None and packed.exists():
            places[name] = str(packed.resolve()) + name.removeprefix(path)
        elif Path(path).is_absolute() and not Path(path).exists():
            raise InputError("is not on this machine", file=path,
                             remedy="put it there, or name the content folder of an export with --content")
    catalogue = str(_catalogue(recipe, content))
    config = {**replace_strings(recipe.config, places), "catalogue": catalogue, "repeats": recipe.repeat + 1}
    scenario_file.parent.mkdir(parents=True, exist_ok=True)
    scenario_file.write_text(yaml.safe_dump(config, sort_keys=False))
    trial = plan_experiment(scenario_file).trials[-1]
    back = {new: old for old, new in places.items()}
    if recipe.config.get("catalogue"):
        back[catalogue] = str(recipe.config["catalogue"])
    return trial, back


def replace_strings(value: Any, places: Mapping[str, str]) -> Any:
    """Copy of JSON-like data with every string that is a key of `places` replaced, also as a part joined by `+`."""
    if isinstance(value, Mapping):
        return {k: replace_strings(v, places) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [replace_strings(v, places) for v in value]
    if isinstance(value, str):
        return places.get(value) or "+".join(places.get(part, part) for part in value.split("+"))
    return value


def zip_folder(folder: Path, prefix: str = "") -> bytes:
    """All files of a folder as a zip archive, in the order of their names; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            info = zipfile.ZipInfo(prefix + path.relative_to(folder).as_posix(), _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, path.read_bytes())
    return buffer.getvalue()


def unzip(data: bytes, folder: Path) -> None:
    """Unpack an archive made by `zip_folder`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(folder)


def _catalogue(recipe: Recipe, content: Path | None) -> Path:
    named = recipe.config.get("catalogue")
    candidates = [None if content is None else content / CATALOGUE, Path(named) if named else None,
                  None if named else find_upwards(recipe.source, CATALOGUE)]
    for path in candidates:
        if path is not None and path.is_file():
            return path.resolve()
    raise InputError("is not on this machine", file=named or f"{CATALOGUE} above {recipe.source}", key="catalogue",
                     remedy="put it there, or name the content folder of an export with --content")


def _pack_catalogue(content: Content, files: Mapping[str, str], folder: Path) -> None:
    catalogue, target = content.catalogue, folder / CATALOGUE
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.read_bytes() != catalogue.path.read_bytes():
        raise InputError("is another catalogue than that of the trials before", file=catalogue.path,
                         remedy="pack trials of one catalogue at a time, or leave the content out with --no-content")
    shutil.copyfile(catalogue.path, target)
    models = [n.removeprefix("model:") for n in files if n.startswith("model:")]
    learned = {n.removeprefix("codec:") for n in files if n.startswith("codec:")} | set(content.codecs.learned_for(models))
    wanted = [content.codecs.learned(name).info.weights for name in sorted(learned)]
    for info in (catalogue[name] for name in models):
        wanted += [info.weights] if info.weights is not None else []
        wanted += [info.builder.rpartition(":")[0]] if ".py:" in info.builder else []
    for relative in wanted:
        if Path(relative).is_absolute() or ".." in Path(relative).parts:
            raise InputError("lies outside its catalogue's folder and cannot be packed", file=catalogue.path,
                             value=relative, remedy="move it beside the catalogue")
        (target.parent / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(catalogue.path.parent / relative, target.parent / relative)
    for name in (n.removeprefix("profile:") for n in files if n.startswith("profile:")):
        profile = folder / "nodes" / "profiles" / f"{name}.yaml"
        profile.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(content.profiles / f"{name}.yaml", profile)


def _path(name: str) -> str:
    """The file in a content name: `/a/mine.py:Mine` is of `/a/mine.py`; labels such as `model:x` are returned as they are."""
    return name.rpartition(":")[0] if ".py:" in name else name


def _place(name: str, sha256: str) -> str:
    return f"files/{sha256[:12]}/{Path(_path(name)).name}"

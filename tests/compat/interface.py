"""What the vLLM of this environment lacks of all that the connector uses of it: printed as a list in JSON.

Read off the connector's modules: the names that they import, the attributes that they touch, the parameters that they
give. What vLLM gives them has no type there; `GIVEN` knows it by its name. And methods that vLLM is to call must be
methods of its base class, with the same parameters.
"""

import ast
import functools
import importlib
import inspect
import json
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import kvblend

CONNECTOR = Path(kvblend.__path__[0]) / "vllm_connector"
GIVEN = {
    "_kv_transfer_config": "vllm.config.KVTransferConfig",
    "attention": "vllm.model_executor.layers.attention.Attention",
    "blocks": "vllm.v1.core.kv_cache_manager.KVCacheBlocks",
    "cache_config": "vllm.config.CacheConfig",
    "compilation_config": "vllm.config.CompilationConfig",
    "connector_output": "vllm.v1.outputs.KVConnectorOutput",
    "coordinator": "vllm.v1.core.kv_cache_coordinator.KVCacheCoordinator",
    "impl": "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackendImpl",
    "kv_cache_config": "vllm.v1.kv_cache_interface.KVCacheConfig",
    "kv_cache_groups": "vllm.v1.kv_cache_interface.KVCacheGroupSpec",
    "kv_events_config": "vllm.config.KVEventsConfig",
    "layer": "vllm.model_executor.layers.attention.Attention",
    "manager": "vllm.v1.core.kv_cache_manager.KVCacheManager",
    "model_config": "vllm.config.ModelConfig",
    "module": "vllm.model_executor.layers.linear.LinearBase",
    "parallel_config": "vllm.config.ParallelConfig",
    "request": "vllm.v1.request.Request",
    "sampling_params": "vllm.sampling_params.SamplingParams",
    "scheduled_cached_reqs": "vllm.v1.core.sched.output.CachedRequestData",
    "scheduled_new_reqs": "vllm.v1.core.sched.output.NewRequestData",
    "scheduler_config": "vllm.config.SchedulerConfig",
    "scheduler_output": "vllm.v1.core.sched.output.SchedulerOutput",
    "vllm_config": "vllm.config.VllmConfig",
}
"""Of which class is what the connector has under these names, as parameters and attributes; of a list, its elements."""
ALIASES = {"_cache_config": "kv_cache_config", "_config": "vllm_config", "_manager": "manager", "_request": "request"}
"""What its own objects keep of that."""
OWN = {"of", "scheduler", "worker"}
"""Public methods of the connector's classes that are not for vLLM."""


@functools.cache
def found(path: str) -> Any:
    """A module of vLLM, or what lies in one; None where it is gone."""
    try:
        return importlib.import_module(path)
    except ImportError:
        module, _, name = path.rpartition(".")
        return getattr(found(module), name, None) if module else None


def has(owner: Any, name: str) -> bool:
    """Whether a module has `name`, or a class has it for its instances."""
    if hasattr(owner, name):
        return True
    bases = owner.__mro__ if inspect.isclass(owner) else ()
    return any(name in inspect.get_annotations(base) or name in _set_by(base) for base in bases)


@functools.cache
def _set_by(kind: type) -> set[str]:
    try:
        return set(re.findall(r"\bself\.(\w+)", inspect.getsource(kind)))
    except (OSError, TypeError):
        return set()


class Uses(ast.NodeVisitor):
    """`problems`: what a module asks of vLLM that it has not, or not in this way."""

    def __init__(self, tree: ast.Module) -> None:
        self.problems: dict[str, None] = {}
        self._imported: dict[str, Any] = {}
        ours = {ast.unparse(node.target) for node in ast.walk(tree)
                if isinstance(node, ast.AnnAssign) and not _is_any(node.annotation)}  # fmt: skip
        kept = {own: GIVEN[name] for own, name in ALIASES.items()}
        self._fields = {name: found(path) for name, path in (GIVEN | kept).items() if name not in ours}
        self._names: dict[str, Any] = {}
        self._own: set[str] = set()
        self.visit(tree)

    def visit_Import(self, node: ast.Import) -> None:
        self._imported |= {alias.name: found(alias.name) for alias in node.names if _is_vllm(alias.name)}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module is None or not _is_vllm(node.module):
            return
        for alias in node.names:
            self._imported[alias.name] = found(f"{node.module}.{alias.name}")
            if self._imported[alias.name] is None:
                self._tell(f"{node.module}.{alias.name} is gone")

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        bases = [
            self._imported[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in self._imported
        ]
        before = self._names, self._own
        self._names = {**self._names, "self": bases[0] if bases else None}
        self._own = {part for inner in ast.walk(node) for part in _named_by(inner)}
        self.generic_visit(node)
        self._names, self._own = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before = self._names
        taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        given = {each.arg: self._fields.get(each.arg) if _is_any(each.annotation) else None for each in taken}
        self._names = {**self._names, **given, "self": self._names.get("self")}
        self.generic_visit(node)
        self._names = before

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            self._names |= {own.id: self._kind(value) for own, value in pairs if isinstance(own, ast.Name)}

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name) and _is_any(node.annotation):
            self._names[node.target.id] = self._fields.get(node.target.id)

    def visit_For(self, node: ast.For) -> None:
        self._take(node)
        self.generic_visit(node)

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        for part in node.generators:
            self._take(part)
        self.generic_visit(node)

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = self._kind(node.value)
        if owner is None or has(owner, node.attr) or (_is_self(node.value) and node.attr in self._own):
            return
        self._tell(f"{owner.__name__} has no {node.attr}")

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called, before = self._called(node.func)
        if called is None:
            return
        spread = any(isinstance(each, ast.Starred) for each in node.args) or any(not own.arg for own in node.keywords)
        values = [None for each in node.args if not isinstance(each, ast.Starred)]
        named = {own.arg: None for own in node.keywords if own.arg}
        try:
            signature = inspect.signature(called)
            (signature.bind_partial if spread else signature.bind)(*before, *values, **named)
        except TypeError as error:
            self._tell(f"{called.__qualname__} takes other parameters: {error}")

    def _called(self, func: ast.expr) -> tuple[Any, tuple[None, ...]]:
        """vLLM's function or class that is called, and what stands in front of the arguments: a method's object."""
        if isinstance(func, ast.Name):
            called = self._imported.get(func.id)
            return (called if callable(called) else None), ()
        owner = self._kind(func.value) if isinstance(func, ast.Attribute) else None
        if owner is None or not isinstance(func, ast.Attribute) or (_is_self(func.value) and func.attr in self._own):
            return None, ()
        called = getattr(owner, func.attr, None)
        is_method = inspect.isfunction(inspect.getattr_static(owner, func.attr, None)) and inspect.isclass(owner)
        return (called if callable(called) else None), ((None,) if is_method else ())

    def _kind(self, value: ast.expr) -> Any:
        """The class of a value, or the module, that is vLLM's; None where it is not, or not known."""
        if isinstance(value, ast.Name):
            return self._names.get(value.id) or self._imported.get(value.id)
        if isinstance(value, ast.Attribute):
            return self._fields.get(value.attr)
        if isinstance(value, ast.Call):
            if isinstance(value.func, ast.Name) and value.func.id == "super":
                return self._names.get("self")
            made = self._called(value.func)[0]
            made = typing.get_type_hints(made).get("return") if inspect.isfunction(made) else made
            return made if inspect.isclass(made) and _is_vllm(made.__module__) else None
        return None

    def _take(self, loop: ast.For | ast.comprehension) -> None:
        if isinstance(loop.target, ast.Name):
            self._names[loop.target.id] = self._kind(loop.iter)

    def _tell(self, problem: str) -> None:
        self.problems[problem] = None


def _is_vllm(module: str) -> bool:
    return module.partition(".")[0] == "vllm"


def _is_any(annotation: ast.expr | None) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


def _is_self(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id == "self"


def _named_by(node: ast.AST) -> Iterator[str]:
    """What of its own a class has by this part of it."""
    if isinstance(node, ast.FunctionDef):
        yield node.name
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
        yield node.attr
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def lacking_names() -> Iterator[str]:
    """Of `GIVEN`: a class that lies elsewhere now must be named here before its attributes can be compared."""
    for name, path in GIVEN.items():
        if found(path) is None:
            yield f"{path} is gone, of which the connector's {name} was"


def lacking_uses() -> Iterator[str]:
    """What the connector's modules ask in vain, each with the file that does."""
    for path in sorted(CONNECTOR.resolve().rglob("*.py")):
        for problem in Uses(ast.parse(path.read_text())).problems:
            yield f"{problem} ({path.name})"


def changed_methods(own_classes: Iterable[type]) -> Iterator[str]:
    """Methods of ours that vLLM would not call, or call otherwise."""
    for own_class in own_classes:
        for name, own in vars(own_class).items():
            own = getattr(own, "__func__", own)
            if name.startswith("_") or name in OWN or not (inspect.isfunction(own) or isinstance(own, property)):
                continue
            theirs = next((vars(base)[name] for base in own_class.__mro__[1:] if name in vars(base)), None)
            if theirs is None:
                yield f"{name} is no method of vLLM's any more ({own_class.__name__})"
            elif inspect.isfunction(own):
                given = _parameters(getattr(theirs, "__func__", theirs))
                taken = inspect.signature(own).parameters.values()
                spread = {each.kind for each in taken} & {
                    inspect.Parameter.VAR_POSITIONAL,
                    inspect.Parameter.VAR_KEYWORD,
                }
                if _parameters(own) != (given[: len(_parameters(own))] if spread else given):
                    yield f"{name} is given {', '.join(given[1:]) or 'nothing'} ({own_class.__name__})"


def _parameters(function: Any) -> list[str]:
    """By name, as vLLM may give them."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


def main() -> list[str]:
    """All of it; what cannot be imported first."""
    problems = [*lacking_names(), *lacking_uses()]
    if any(" is gone (" in problem for problem in problems):
        return problems
    from kvblend.vllm_connector.connector import KVBlendConnector
    from kvblend.vllm_connector.connector_stats import ConnectorPromMetrics, ConnectorStats
    from kvblend.vllm_connector.metadata import StepResults

    own_classes = (KVBlendConnector, StepResults, ConnectorPromMetrics, ConnectorStats)
    return [*problems, *changed_methods(own_classes)]


if __name__ == "__main__":
    print(json.dumps(main()))

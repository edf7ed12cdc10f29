# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""``--cfg-options``: values as they were typed, and keys that count."""
import ast
import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import mmengine.registry
from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry
from mmengine.runner import Runner

from .errors import UserError
from .terminal import some

# Keys that mmengine and the toolboxes read, beside the Runner's arguments.
KEYS = {
    'activation_checkpointing', 'auto_scale_lr', 'compile',
    'efficient_conv_bn_eval', 'find_unused_parameters', 'model_wrapper_cfg',
    'runner_type', 'strategy', 'sync_bn', 'tta_model', 'tta_pipeline'
} | {*inspect.signature(Runner).parameters} - {'cfg', 'launcher'}
# Keys of paths and names, where digits are text.
TEXT = re.compile(r'(_(dir|file|from|name|path|prefix|root)|data_prefix\.\w+|'
                  r'\.checkpoint|\bclasses)(\.\d+)?$')
# Not 007 and 2024_11_05, which Python's int takes.
NUMBER = re.compile(r'[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?inf',
                    re.ASCII | re.IGNORECASE)
# An item in brackets: quoted, a key of a dict, or plain; the end of a tuple.
ITEM = re.compile(r"""\s*(?:
    (["'])(?P<quoted>.*?)\1(?P<colon>\s*:|(?=\s*[],)}]|\s*$))
    | (?P<key>\w+)\s*:(?![\\/]) | (?P<plain>[^][(){},\s][^][(){},]*)
    | (?<![(,\s])(?P<end>\)))""", re.VERBOSE)


def parse_cfg_options(pairs: Sequence[str] | None) -> dict:
    """Parse ``KEY=VALUE`` pairs, in mmengine's syntax but for text."""
    options = {}
    for pair in pairs or ():
        key, equals, text = pair.partition('=')
        if not equals or not all(key.split('.')) or key != key.strip():
            raise UserError('--cfg-options takes KEY=VALUE, without spaces '
                            f'around "=", but got {pair!r}')
        options[key] = _value(text, bool(TEXT.search(key)))
    return options


def _value(text: str, is_text: bool):
    def as_python(item: re.Match) -> str:
        if item['plain']:
            value = _scalar(item['plain'].strip(), is_text)
            return '1e999' if value == float('inf') else repr(value)
        return ',)' if item['end'] else repr(item['key'] or item['quoted']) + (
            ':' if item['key'] or item['colon'] else '')

    bare = text.strip()
    quoted = re.fullmatch(r"""(["'])((?:(?!\1).)*)\1""", bare)
    if quoted:
        return quoted[2]
    in_brackets = bare.startswith(('[', '(', '{'))
    if not in_brackets and ',' not in bare:
        return _scalar(text, is_text)
    try:
        value = ast.literal_eval(ITEM.sub(as_python, bare))
    except (SyntaxError, TypeError, ValueError):
        value = None
    if in_brackets and isinstance(value, list | tuple | dict):
        return value
    if isinstance(value, tuple) and not any(isinstance(x, str) for x in value):
        return [*value]
    if in_brackets and any(bare.count(a) != bare.count(b)
                           for a, b in ('[]', '()', '{}')):
        raise UserError(f'--cfg-options: the brackets of {text} do not match; '
                        'text may be put in quotes')
    return text


def _scalar(text: str, is_text: bool):
    bare = text.strip()
    if bare == 'None' or bare.lower() in ('true', 'false'):
        return ast.literal_eval(bare.capitalize())
    if NUMBER.fullmatch(bare) and not is_text:
        return int(bare) if bare.lstrip('+-').isdigit() else float(bare)
    return text


def apply_cfg_options(cfg: Config, options: dict,
                      allow_new_keys: bool = False) -> None:
    """Set values by dotted keys; refuse a key that nothing would read."""
    # Unlike merge_from_dict, also plain values in lists; _delete_ anywhere.
    leaves = [leaf for key, value in options.items()
              for leaf in _leaves(value, *key.split('.'))]
    new = []
    # Deletions come first, wherever they were typed.
    for names, value in sorted(leaves, key=lambda x: x[0][-1] != '_delete_'):
        option = f'--cfg-options {".".join(names)}'
        if not allow_new_keys:
            _check_read(cfg, option, *names)
        if len(names) > 1 and names[-1] == '_delete_':
            if not value:
                continue
            names, value = names[:-1], {}
        node = cfg
        for i, name in enumerate(names):
            path = '.'.join(names[:i])
            if isinstance(node, list):
                if not name.isdigit() or int(name) >= len(node):
                    raise UserError(f'{option}: {path} is a list of '
                                    f'{len(node)}, the first of them {path}.0')
                name = int(name)
            elif not isinstance(node, dict | Config):
                raise UserError(f'{option}: {path} is {node!r}, not a dict, '
                                f'which {path}._delete_=True makes of it')
            elif name not in node:
                new += [(option, node, name)] * (i > 0)
                node[name] = ConfigDict() if i + 1 < len(names) else None
            parent, node = node, node[name]
        wanted = None
        if names[0] in ('load_from', 'work_dir'):
            wanted = 'text', str | None
        elif isinstance(node, dict) and (len(names) == 1 or 'type' in node):
            wanted = 'settings', dict | list | tuple | None
        elif type(node) in (int, float) and name != 'priority' and not (
                allow_new_keys or isinstance(parent, dict) and 'str' in
                arguments(parent.get('type')).get(name, '')):
            wanted = 'a number', dict | float | int | list | tuple | None
        elif type(node) is bool and str(value).lower() in (
                'yes', 'no', 'on', 'off'):  # all of which are true
            wanted = 'True or False', bool
        if wanted and not isinstance(value, wanted[1]):
            raise UserError(f'{option} takes {wanted[0]}, but got {value!r}')
        parent[name] = ConfigDict(x=value).x
    for option, node, name in () if allow_new_keys else new:
        others = {*node} - {x[2] for x in new if x[1] is node}
        near = nearest(name, {*arguments(node.get('type'))} | others, 0.88)
        # A stage2 beside a stage1 is no misspelling.
        if near and re.sub(r'\d', '', name) != re.sub(r'\d', '', near):
            raise UserError(f'{option}: there is no {name}; did you mean '
                            f'{near}? (--allow-new-keys sets it anyway)')


def _leaves(value, *names: str) -> Iterator[tuple]:
    """The names that lead to each value that is no dict."""
    if not isinstance(value, dict) or not value:
        yield names, value
    else:
        for name in value:
            yield from _leaves(value[name], *names, name)


def parts(node, *names: str) -> Iterator[tuple]:
    """All that is inside of a config, with the names that lead there."""
    for name in (node if isinstance(node, dict) else range(len(node))
                 if isinstance(node, list | tuple) else ()):
        yield (*names, str(name)), node[name]
        yield from parts(node[name], *names, str(name))


def _check_read(cfg: Config, option: str, first: str, *rest: str) -> None:
    model, keys = cfg.get('model'), KEYS
    if isinstance(model, dict) and 'data_preprocessor' in model:
        keys = KEYS - {'data_preprocessor'}  # the model's counts
    if first in keys:
        return
    inside = [*parts({key: cfg[key] for key in cfg if key in keys})]
    known, old = first in cfg, cfg.get(first)
    equal = [names for names, value in inside if known and value == old]
    # What has the value of the variable and its name, or one of the two.
    places = [x for x in equal if f'_{first}'.endswith(f'_{x[-1]}')] or [
        names for names, value in inside
        if f'_{names[-1]}'.endswith(f'_{first}')
        and (not known or type(value) is type(old))
    ] or equal * (isinstance(old, dict | list) and bool(old))
    near = some(['.'.join([*names, *rest]) for names in places]) or (
        '' if known else nearest(first, keys, 0.5))
    raise UserError(
        f'{option}: ' + (f'a run does not read {first}, a variable of the '
                         'config file' if known else
                         f'the config has no {first}')
        + (f'; did you mean {near}?' if near else '')
        + ' (--allow-new-keys sets it anyway)')


def arguments(kind: str | Callable | None) -> dict[str, str]:
    """The arguments of a type and of its bases, with their annotations."""
    found, known = [kind], {}
    if isinstance(kind, str):  # each registry has its own of that name
        found = [registry.module_dict.get(kind.rpartition('.')[2])
                 for root in vars(mmengine.registry).values()
                 if isinstance(root, Registry)
                 for registry in (root, *root.children.values())]
    for base in [base for each in filter(inspect.isclass, found)
                 for base in inspect.getmro(each) if base is not object]:
        if '__init__' in vars(base):
            for x in inspect.signature(base.__init__).parameters.values():
                known[x.name] = f'{known.get(x.name, "")} {x.annotation}'
    known.pop('self', None)
    return known


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """What a misspelt name most likely stands for; '' if nothing."""
    lower = {x.lower(): x for x in names}
    found = difflib.get_close_matches(name.lower(), lower, 1, cutoff)
    return lower[found[0]] if found else ''

"""The table of values in the chart's README, made of the comments of values.yaml (`## @section`, `## @param`)."""

import re

import yaml

import helm

BEGIN, END = "<!-- values: made by `tests/chart.sh readme` -->\n", "<!-- end of values -->\n"


def leaves(values, way=()):
    """Every path that ends in something else than a table with entries."""
    for key, value in values.items():
        path = (*way, key)
        if isinstance(value, dict) and value:
            yield from leaves(value, path)
        else:
            yield ".".join(path), value


def table():
    """The table, or AssertionError about what is documented and not there, or the other way round."""
    text = (helm.CHART / "values.yaml").read_text()
    defaults = dict(leaves(yaml.safe_load(text)))
    rows, told, intro = [], set(), False
    for line in text.splitlines():
        if found := re.match(r"## @section (.+)", line):
            rows += ["", f"### {found[1]}", ""]
            intro = True
        elif found := re.match(r"## @param (\S+) (.+)", line):
            if intro:
                rows += ([""] if rows[-1] else []) + ["| value | meaning | default |", "|---|---|---|"]
                intro = False
            path, meaning = found[1], found[2].replace("|", "\\|")
            inside = {key: value for key, value in defaults.items() if key == path or key.startswith(f"{path}.")}
            if not inside:
                raise AssertionError(f"values.yaml tells of {path}, which is not there")
            told |= inside.keys()
            default = shown(inside[path]) if path in inside else "see values.yaml"
            rows.append(f"| `{path}` | {meaning} | {default} |")
        elif intro and line.startswith("## "):
            rows.append(line.removeprefix("## "))
    if silent := defaults.keys() - told:
        raise AssertionError(f"values.yaml has no comment for {', '.join(sorted(silent))}")
    return "\n".join(rows[1:]) + "\n"


def shown(value):
    match value:
        case None | "" | [] | {}:
            return ""
        case [dict(), *_]:
            return "see values.yaml"
        case bool():
            return f"`{str(value).lower()}`"
        case list():
            return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def rewritten():
    """The README as it should be, and as it is."""
    text = (helm.CHART / "README.md").read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n" + table() + "\n" + END + after, text

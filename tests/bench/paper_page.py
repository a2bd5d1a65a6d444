"""The page of tests/bench/paper: one file with tables and pictures, for light and dark screens and for paper."""

import html
import io
import math
import pathlib
import re

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

ROOT = pathlib.Path(__file__).parents[2]
MARKERS = "osD^vPX*<"
# Pictures are drawn in these colours, in whose place the page has its own: they change between light and dark.
TEXT, GRID, SHARE = "#010203", "#010204", "#010205"
SERIES = [f"#0102{10 + i:02x}" for i in range(len(MARKERS))]
STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
}
CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #59636e; --grid: #d8dde3; --line: #c3cad2; --share: #0969da;
  --c0: #1b1f24; --c1: #b35900; --c2: #0969da; --c3: #1a7f37; --c4: #a0307a; --c5: #6e5c00; --c6: #cf222e; --c7: #5a32a3; --c8: #0f766e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --paper: #14171b; --soft: #9aa4af; --grid: #31373e; --line: #454d56; --share: #58a6ff;
  --c0: #e6e9ed; --c1: #ffa657; --c2: #79c0ff; --c3: #56d364; --c4: #f778ba; --c5: #e3c04a; --c6: #ff7b72; --c7: #b898ff; --c8: #5eead4; } }
@media print { :root { color-scheme: light; --ink: #000; --paper: #fff; --soft: #333; --grid: #ccc; --line: #999; --share: #0550ae;
  --c0: #000; --c1: #b35900; --c2: #0550ae; --c3: #116329; --c4: #8a2467; --c5: #6e5c00; --c6: #a40e26; --c7: #4c2889; --c8: #0b5a54; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 "DejaVu Sans", Verdana, system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
p, figcaption, li { max-width: 50rem; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .75rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .25rem .35rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
thead th { border-bottom: 1px solid var(--ink); font-weight: 600; vertical-align: bottom; }
tbody td { border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
figure { margin: .75rem 0 0; }
figcaption { margin-top: .5rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: .5rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: "DejaVu Sans", Verdana, system-ui, sans-serif !important; }
code { font: .78rem/1.5 "DejaVu Sans Mono", ui-monospace, Menlo, Consolas, monospace; }
code span { display: inline-block; max-width: 100%; overflow-wrap: anywhere; }
ol.commands { padding-left: 2.2rem; }
ol.commands li { margin-bottom: .35rem; max-width: none; }
a { color: inherit; }
@media (max-width: 45rem) { .wide svg { min-width: 40rem; } }
@page { margin: 14mm; }
@media print { body { max-width: none; padding: 0; font-size: 9.5pt; } table { font-size: 6.6pt; } th, td { padding: .12rem .2rem; }
  .wide { overflow: visible; } figure, tr { break-inside: avoid; } h2 { break-after: avoid; }
  .pair { grid-template-columns: 1fr 1fr; } code { font-size: 6.5pt; line-height: 1.3; } ol.commands li { margin-bottom: .1rem; } a { text-decoration: none; } }
"""


def svg(figure, name):
    """A figure as a part of the page. `name` is its description for those who do not see it."""
    out = io.StringIO()
    matplotlib.rcParams["svg.hashsalt"] = name
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    pyplot.close(figure)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Names within a picture are known to the whole page.
    mark = re.sub(r"\W+", "-", name)
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{mark}-", text)
    colours = {TEXT: "currentColor", GRID: "var(--grid)", SHARE: "var(--share)"} | {c: f"var(--c{i})" for i, c in enumerate(SERIES)}
    for drawn, shown in colours.items():
        text = text.replace(drawn, shown)
    text = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{html.escape(name)}">', text)
    return text.strip()


def against_time(rows, of, error, label, title, colours):
    """A figure of some value of each row against the share of the time that is saved, a line for each method."""
    figure, axis = pyplot.subplots(figsize=(4.9, 4.4), layout="constrained")
    axis.axhline(of(rows[0]), color=SERIES[0], linewidth=1, linestyle=(0, (4, 3)))
    for method in dict.fromkeys(r["method"] for r in rows):
        points = [r for r in rows if r["method"] == method]
        place = colours.get(method, 0)
        look = {"color": SERIES[place], "marker": MARKERS[place], "linestyle": "-" if place else ""}
        saved = [100 * r["saved"] for r in points]
        axis.plot(saved, [of(r) for r in points], label=method, **look)
        for x, r in zip(saved, points):
            if error:
                axis.errorbar(x, of(r), error(r), color=SERIES[place], linewidth=0.7, alpha=0.6)
            if r["ratio"] != "0":
                axis.annotate(r["ratio"], (x, of(r)), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axis.set(xlabel="time saved, %", ylabel=label, title=title)
    axis.margins(x=0.1)
    figure.legend(loc="outside lower center", ncols=3, handlelength=1.6, columnspacing=1.2)
    return figure


def pair(rows, name, colours):
    """Accuracy and perplexity side by side, or below each other where the page is narrow."""
    mean, error = (lambda r: 100 * r["mean"]), (lambda r: 100 * r["error"])
    accuracy = against_time(rows, mean, error, "mean accuracy of seven tasks, %", "Accuracy: higher is better", colours)
    perplexity = against_time(rows, lambda r: r["ppl"], None, "perplexity", "Perplexity: lower is better", colours)
    both = svg(accuracy, f"accuracy against time saved, {name}") + svg(perplexity, f"perplexity against time saved, {name}")
    return f'<div class="pair">{both}</div>'


def kept_map(rows, units):
    """What each layer keeps, a line of cells for each way of pruning: heads and channels, means over the tasks whose last batch was pruned."""
    n_layer = len(rows[0]["kept"][0])
    is_pruned = lambda task: any(tuple(task[il]) != units(il) for il in range(n_layer))  # noqa: E731
    rows = [{**r, "kept": [task for task in r["kept"] if is_pruned(task)]} for r in rows]
    rows = [r for r in rows if r["kept"]]
    figure, axes = pyplot.subplots(2, 1, figsize=(9.2, 1.1 + 0.44 * len(rows)), layout="constrained", sharex=True)
    for kind, (axis, title) in enumerate(zip(axes, ["Heads kept", "MLP channels kept"])):
        for y, r in enumerate(rows):
            for il in range(n_layer):
                share = sum(task[il][kind] for task in r["kept"]) / len(r["kept"]) / units(il)[kind]
                look = {"facecolor": to_rgba(SHARE, share), "edgecolor": GRID, "linewidth": 0.5, "clip_on": False}
                axis.add_patch(Rectangle((il - 0.46, y - 0.42), 0.92, 0.84, **look))
        axis.set(title=title, xlim=(-0.6, n_layer - 0.4), ylim=(len(rows) - 0.4, -0.6))
        axis.set_yticks(range(len(rows)), [f"{r['method']} {r['ratio']}" for r in rows], fontsize=8)
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    axes[1].set_xticks(range(0, n_layer, max(1, n_layer // 15)))
    axes[1].set_xlabel("layer")
    handles = [Rectangle((0, 0), 1, 1, facecolor=to_rgba(SHARE, a), edgecolor=GRID, linewidth=0.5) for a in (0, 0.25, 0.5, 0.75, 1)]
    figure.legend(handles, ["0%", "25%", "50%", "75%", "100%"], loc="outside lower center", ncols=5, handlelength=1.2, handleheight=1.2)
    return figure


def quantisations(shown):
    """The scale by which pp-run puts this model's divergences in words: whose it is, and its steps."""
    lines = (ROOT / "src/prune/quantisations.csv").read_text().splitlines()
    models = {}
    for line in lines:
        if not line.startswith("#"):
            *model, ty, kl = line.rsplit(",", 4)
            models.setdefault(tuple(model), []).append((ty, float(kl)))
    own = (shown["metadata"].get("general.name"), shown["architecture"], str(shown["n_params"]))
    first = next(iter(models))
    return ("this model", models[own]) if own in models else (first[0], models[first])


# Shares of the tokens below the values that the table of divergences has.
QUANTILES = [("Minimum", 0), ("0.1%", 0.001), ("1.0%", 0.01), ("5.0%", 0.05), ("10.0%", 0.1), ("Median", 0.5), ("90.0%", 0.9),
             ("95.0%", 0.95), ("99.0%", 0.99), ("99.9%", 0.999), ("Maximum", 1)]  # fmt: skip


def histograms(rows, scale, colours):
    """How divergences are distributed over the tokens, a histogram for each way of pruning, with quantisations' means."""
    figure, axis = pyplot.subplots(figsize=(9.2, 1.5 + 0.42 * len(rows)), layout="constrained")
    least, most = 1e-5, max(r["kl"]["Maximum"] for r in rows)
    for y, r in enumerate(rows):
        # Between two quantiles lies a known share of the tokens.
        edges = [math.log10(max(r["kl"][name], least)) for name, _ in QUANTILES]
        bars = [(a, b, (q2 - q1) / (b - a)) for (a, b, q1, q2) in zip(edges, edges[1:], [q for _, q in QUANTILES], [q for _, q in QUANTILES[1:]]) if b > a]
        tallest = max(height for *_, height in bars)
        colour = SERIES[colours[r["method"]]]
        for a, b, height in bars:
            axis.bar(10**a, 0.8 * height / tallest, width=10**b - 10**a, align="edge", bottom=len(rows) - 1 - y, color=colour, alpha=0.45, linewidth=0)
        axis.plot(r["kl"]["Mean"], len(rows) - 1 - y + 0.12, color=colour, marker="D", markersize=5)
    axis.set(xscale="log", xlim=(least, 1.3 * most), ylim=(-0.1, len(rows)), xlabel="KL divergence of a token, nats (a diamond is the mean)")
    axis.set_yticks([len(rows) - 1 - y + 0.2 for y in range(len(rows))], [f"{r['method']} {r['ratio']}" for r in rows], fontsize=8)
    axis.grid(False, axis="y")
    axis.tick_params(axis="y", length=0)
    last = 0.0
    for ty, kl in scale:
        axis.axvline(kl, color=TEXT, linewidth=0.8, linestyle=(0, (2, 2)))
        # Names that would stand on each other go side by side.
        at = max(math.log10(kl), last + 0.13) if last else math.log10(kl)
        axis.annotate(ty, (10**at, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points", rotation=60, fontsize=8, ha="left")
        last = at
    return figure


def table(head, rows):
    def command_links(text):
        return ", ".join(f'<a href="#command-{n}">{n}</a>' for n in text.split(", "))

    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = ""
    for row in rows:
        body += "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[:-1]) + f"<td>{command_links(row[-1])}</td></tr>\n"
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>'


def numbers(rows):
    """Numbers of the commands of some rows, in words: those that follow each other as a range."""
    links = []
    for n in sorted({n for r in rows for n in r["runs"]}):
        if links and links[-1][1] == n - 1:
            links[-1][1] = n
        else:
            links.append([n, n])
    link = lambda n: f'<a href="#command-{n}">{n}</a>'  # noqa: E731
    return "Commands: " + ", ".join(link(a) if a == b else f"{link(a)} to {link(b)}" for a, b in links) + "."


def page(shown, head, tables, notes, commands):
    """The page of a model that `pp-run show` describes; tables are of rows as text and as numbers."""
    metadata = shown["metadata"]

    def units(il):
        of_layer = lambda value: value[il] if isinstance(value, list) and len(value) > il else value  # noqa: E731
        named = lambda key: of_layer(metadata[f"{shown['architecture']}.{key}"])  # noqa: E731
        return named("attention.head_count"), named("feed_forward_length")

    (paper_cells, paper), (reading_cells, reading) = tables
    whose, scale = quantisations(shown)
    divergences = [*paper[1:], *reading[1:]]
    methods = dict.fromkeys(r["method"] for r in divergences)
    colours = {method: 1 + i % (len(SERIES) - 1) for i, method in enumerate(methods)}
    wide = lambda picture: f'<div class="wide">{picture}</div>'  # noqa: E731
    name = pathlib.Path(shown["path"]).name
    with matplotlib.rc_context(STYLE):
        parts = [
            ("The paper's rules", table(head, paper_cells), html.escape(notes[0])),
            (
                "Accuracy and perplexity against time saved",
                pair(paper, "by the paper's rules", colours),
                "Each point is a method at a ratio; bars are the standard error of the questions drawn. " + numbers(paper),
            ),
            ("Pruned reading", table(head, reading_cells), html.escape(notes[1])),
            (
                "Pruned reading: accuracy and perplexity against time saved",
                pair(reading, "of pruned reading", colours),
                "By lm-evaluation-harness's rules; the time is that of reading. " + numbers(reading),
            ),
            (
                "What is kept, by layer",
                wide(svg(kept_map(divergences, units), "kept heads and channels by layer")),
                "Share of each layer's heads and channels in the last batch of a task that was pruned, means over the tasks. "
                + numbers(divergences),
            ),
            (
                "KL divergence on the scale of quantisations",
                wide(svg(histograms(divergences, scale, colours), "KL divergence on the scale of quantisations")),
                f"Dashed lines are means of quantisations of {html.escape(whose)}; a histogram's bars end at the quantiles that pp-run perplexity prints, "
                f"and its area is all tokens. Rows of reading are of the tokens after what was read, the others of all tokens. "
                + numbers(divergences),
            ),
        ]
    body = "".join(f"<h2>{title}</h2>\n<figure>{content}<figcaption>{text}</figcaption></figure>\n" for title, content, text in parts)
    # Lines break between arguments, never at the hyphens of flags.
    of_command = lambda c: " ".join(f"<span>{html.escape(part)}</span>" for part in c.split(" "))  # noqa: E731
    listed = "".join(f'<li id="command-{i}"><code>{of_command(c)}</code></li>\n' for i, c in enumerate(commands, 1))
    about = f"{metadata.get('general.name', name)}, {shown['architecture']}, {shown['n_params'] / 1e6:.1f} M parameters, {', '.join(shown['types'])}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(name)}: what pruning costs and saves</title>
<style>{CSS}</style>
</head>
<body>
<h1>{html.escape(name)}</h1>
<p class="soft">What pruning costs and saves. {html.escape(about)}.</p>
{body}<p class="soft">{html.escape(notes[2])}</p>
<h2>Commands</h2>
<ol class="commands">
{listed}</ol>
</body>
</html>
"""

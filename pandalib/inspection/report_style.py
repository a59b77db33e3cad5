"""The style sheet of `pandalib.inspection.report`: light, dark, paper, wide and narrow. Its colours keep a contrast of 4.5 to 1 (tests/test_report.py)."""

STYLE = """\
:root {
  color-scheme: light dark;
  --ground: #ffffff; --raised: #f6f6f4; --text: #1c1c1e; --quiet: #56565c; --line: #d4d4d0;
  --normal: #0072b2; --found: #b34a00; --alarm-ground: #fdeee4; --alarm-text: #8a3600; --warning-ground: #fff6d6; --link: #005a8f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #16171a; --raised: #202226; --text: #ececee; --quiet: #b0b2b8; --line: #3e4148;
    --normal: #62b8ef; --found: #ff9c57; --alarm-ground: #4a2a14; --alarm-text: #ffc79e; --warning-ground: #3d3513; --link: #8ccbf5;
  }
}
* { box-sizing: border-box; }
html { background: var(--ground); }
body { margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 80rem; background: var(--ground); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; display: flex; gap: .6rem; align-items: baseline; }
p, ul { max-width: 46rem; }
ul { margin: 0; }
ul { padding-left: 1.25rem; }
li + li { margin-top: .4rem; }
a { color: var(--link); }
code { font-family: ui-monospace, "DejaVu Sans Mono", Consolas, monospace; font-size: .92em; }
.beside { display: grid; gap: 0 3rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.beside > section { min-width: 0; }
.lead { font-size: 1.25rem; margin: 0 0 1rem; }
.warning, .note { background: var(--warning-ground); border-left: .3rem solid var(--found); padding: .6rem 1rem; border-radius: .25rem; margin: .75rem 0; }
figure { margin: 0; }
figcaption { margin-top: .4rem; }
figcaption, .detail, caption { color: var(--quiet); font-size: .9rem; }
.wide { overflow-x: auto; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.histogram { display: block; width: 100%; min-width: 19rem; max-width: 36rem; height: auto; }
.histogram text { fill: var(--text); font-size: 14px; }
.axis { stroke: var(--quiet); }
.normal { fill: var(--normal); fill-opacity: .3; stroke: var(--normal); stroke-width: 1.8; }
.found { fill: url(#hatch); stroke: var(--found); stroke-width: 1.8; stroke-dasharray: 5 3; }
.hatch { stroke: var(--found); stroke-width: 2.4; }
.threshold { stroke: var(--text); stroke-width: 2; }
.key { white-space: nowrap; margin-right: 1.2rem; color: var(--text); }
.key svg { vertical-align: -2px; }
.legend { max-width: 20rem; margin-bottom: 1.25rem; }
.legend img { display: block; width: 100%; height: 1.25rem; border: 1px solid var(--line); }
.ticks { display: grid; grid-template-columns: 1fr 1fr 1fr; text-align: center; font-size: .85rem; }
.ticks > :first-child { text-align: left; }
.ticks > :last-child { text-align: right; }
.gallery { list-style: none; padding: 0; margin: 0; display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 23rem), 1fr)); }
.gallery > li { margin: 0; }
.card { background: var(--raised); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; break-inside: avoid; min-width: 0; }
.card.alarm { border-left: .3rem solid var(--found); }
.rank { color: var(--quiet); font-weight: 400; font-variant-numeric: tabular-nums; }
.score { margin: .35rem 0 .7rem; display: flex; flex-wrap: wrap; gap: .6rem; align-items: baseline; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; }
.pair img { display: block; width: 100%; height: auto; border-radius: .25rem; }
.detail { margin: .6rem 0 0; }
.yes, .no { font-size: .88rem; white-space: nowrap; }
.yes { background: var(--alarm-ground); color: var(--alarm-text); font-weight: 600; padding: .1rem .5rem; border-radius: 1rem; }
.no { color: var(--quiet); }
summary { cursor: pointer; padding: .3rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .3rem 0; }
th, td { text-align: left; padding: .35rem 1.4rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
td:not(:nth-child(4)):not(:last-child), th[scope="col"]:nth-child(1), th[scope="col"]:nth-child(3), th[scope="col"]:nth-child(5), th[scope="col"]:nth-child(6) { text-align: right; }
tbody th { font-weight: 400; overflow-wrap: anywhere; min-width: 9rem; }
thead th { white-space: nowrap; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: .8rem 2rem; margin: 0; }
dt { color: var(--quiet); font-size: .9rem; }
dd { margin: 0; overflow-wrap: anywhere; }
@media print {
  :root { --ground: #fff; --raised: #fff; --text: #000; --quiet: #444; --line: #999; --normal: #0072b2; --found: #b34a00; --alarm-ground: #fff; --alarm-text: #000; --warning-ground: #fff; --link: #000; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  .gallery { grid-template-columns: 1fr 1fr; }
  .wide { overflow: visible; }
  .histogram { min-width: 0; }
  .yes { border: 1px solid #000; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
}
"""

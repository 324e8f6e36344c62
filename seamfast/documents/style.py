"""The stylesheet of the page: system fonts, light and dark, paper, and down to 320 pixels."""

# The colors of verdicts and charts are Okabe and Ito's, as in `seamfast.plot`: they differ for color-blind eyes. Text
# on them is black, which all of them carry with a contrast above 5; no text is written in them.
STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f4f5f7; --ink: #16191d; --soft: #525a64; --rule: #d3d8de;
  --before: #d55e00; --after: #0072b2; --grid: #dfe3e8; --shade: #e6e9ee;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --panel: #1d2126; --ink: #e9ecef; --soft: #a7b0ba; --rule: #3a414a;
    --before: #e69f00; --after: #56b4e9; --grid: #2f353d; --shade: #2a3037;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  overflow-wrap: anywhere;
}
header, main, footer { max-width: 66rem; margin: 0 auto; padding: 0 1.5rem; }
h1, h2, h3 { line-height: 1.2; text-wrap: balance; }
h2 { margin: 3rem 0 .75rem; font-size: 1.35rem; }
h3 { margin: 2rem 0 .5rem; font-size: 1.05rem; }
p { margin: .5rem 0; max-width: 44rem; }
ul { margin: .5rem 0; padding-left: 1.25rem; max-width: 48rem; }
li { margin: .3rem 0; }
code { font: .875em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
code, bdi { unicode-bidi: isolate; overflow-wrap: anywhere; }
.soft, figcaption, .note { color: var(--soft); font-size: .9rem; }
.note { display: block; font-weight: 400; overflow-wrap: anywhere; }

.line { display: flex; flex-wrap: wrap; gap: .1rem 1.5rem; justify-content: space-between; padding: 1.25rem 0 .75rem; }
.line span:first-child { font-weight: 600; color: var(--ink); }
.verdict { color: #000; border-radius: .5rem; padding: 1.5rem 1.75rem; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; border: 1px solid transparent; }
.verdict h1 { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; align-items: baseline;
  justify-content: space-between; margin: 0; font-size: 2.4rem; letter-spacing: -.01em; }
.verdict .exit { font-size: 1rem; font-weight: 600; letter-spacing: 0; }
.verdict p { margin: .5rem 0 0; font-size: 1.05rem; }
.verdict ul { margin: .75rem 0 0; }
.mark { margin-right: .3em; }
.pass { background: #009e73; } .fail { background: #d55e00; } .inconclusive { background: #e69f00; }
.refused { background: #cc79a7; } .incomplete { background: #56b4e9; }
.chip { display: inline-block; color: #000; border-radius: 1rem; padding: .05rem .7rem; font-size: .875rem;
  font-weight: 600; white-space: nowrap; print-color-adjust: exact; -webkit-print-color-adjust: exact;
  border: 1px solid transparent; }

table { width: 100%; border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .55rem 1rem .55rem 0; text-align: left; vertical-align: top; border-top: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 0; }
td, thead th { overflow-wrap: normal; }
thead th { border-top: 0; color: var(--soft); font-size: .85rem; font-weight: 600; vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 1px solid var(--rule); }
tbody th { font-weight: 600; }
.rates { table-layout: fixed; }
.rates th:nth-child(2) { width: 38%; }
.rates td:nth-child(2), .rates th:nth-child(2) { padding: .55rem 2.5rem .55rem 1.5rem; }
.rates tbody td { vertical-align: middle; }
@media (min-width: 64rem) { .rules td { white-space: nowrap; } }
.digest { display: inline-block; max-width: 32ch; word-break: break-all; }

figure { margin: 1.25rem 0; }
figcaption { max-width: 44rem; margin-top: .5rem; }
.key { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .25rem 0; color: var(--ink); font-size: .9rem; }
.key span { display: inline-flex; align-items: center; gap: .45rem; }
svg { display: block; overflow: visible; }
svg text { fill: var(--soft); font-size: 13px; }
.key svg { flex: none; }
.grid { stroke: var(--grid); }
.span { stroke-width: 2; }
.span.before { stroke: var(--before); } .span.after { stroke: var(--after); }
circle.before { fill: var(--paper); stroke: var(--before); stroke-width: 2.25; }
circle.after { fill: var(--after); }
.scale { display: flex; justify-content: space-between; margin: 0 -1.1em; }
.scale span { min-width: 2.2em; text-align: center; }
.plot { padding: 0 .5rem 0 3.25rem; }
.path { stroke: var(--after); stroke-width: 2; stroke-linecap: round; }
.point { fill: var(--after); }
.received { stroke: var(--before); stroke-width: 1.5; stroke-dasharray: 5 4; }
.attempt { stroke: var(--soft); stroke-dasharray: 1 3; }
.forget { fill: var(--shade); }

.tiles { display: grid; grid-template-columns: repeat(8, minmax(0, 1fr)); gap: .9rem .75rem; margin: 0;
  padding: 0; list-style: none; max-width: none; }
.tiles li { margin: 0; font-size: .8rem; line-height: 1.3; color: var(--soft); }
.tiles img { display: block; width: 100%; height: auto; margin-bottom: .25rem; image-rendering: pixelated;
  border: 1px solid var(--rule); background: var(--panel); }
.tiles .note { font-size: inherit; }
.suspect { font-weight: 700; color: var(--ink); }
mark { background: var(--shade); color: inherit; border-bottom: 2px solid var(--after); }

dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .75rem 1.5rem;
  margin: .75rem 0; }
dl div { min-width: 0; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; }
.wide { grid-column: 1 / -1; }
footer { margin-top: 3.5rem; padding-bottom: 2.5rem; }
footer p { border-top: 1px solid var(--rule); padding-top: 1rem; max-width: none; }

@media screen and (max-width: 46rem) {
  header, main, footer { padding: 0 1rem; }
  .verdict { padding: 1.1rem 1.1rem 1.25rem; }
  .verdict h1 { font-size: 2rem; }
  table, tbody, tr, th, td { display: block; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  tbody tr { padding: .8rem 0; border-top: 1px solid var(--rule); }
  tbody tr:last-child { border-bottom: 1px solid var(--rule); }
  tbody th, tbody td, tbody tr:last-child > * { border: 0; padding: .1rem 0; }
  tbody td[data-label] { position: relative; padding-left: 7rem; overflow-wrap: anywhere; }
  tbody td[data-label]::before { content: attr(data-label); position: absolute; left: 0; width: 6.5rem;
    color: var(--soft); font-size: .9rem; }
  .rates tbody td:nth-child(2) { width: auto; padding: .35rem .5rem; }
  .digest { max-width: 16ch; }
  .tiles { grid-template-columns: repeat(4, minmax(0, 1fr)); }
}
@media print {
  @page { margin: 16mm; }
  body { font-size: 10.5pt; }
  header, main, footer { max-width: none; padding: 0; }
  .verdict, .chip { border-color: #000; }
  h2, h3, figcaption { break-after: avoid; }
  tr, figure, li, .verdict { break-inside: avoid; }
}
"""

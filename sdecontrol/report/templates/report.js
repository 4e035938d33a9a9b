"use strict";
(function () {
  const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));
  const one = (id) => document.getElementById(id);

  const theme = one("theme"), page = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("sdecontrol-theme"); } catch { return null; } };
  const dark = () => (page.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const show = () => theme.setAttribute("aria-pressed", String(dark()));
  if (stored()) page.dataset.theme = stored();
  theme.addEventListener("click", () => {
    page.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("sdecontrol-theme", page.dataset.theme); } catch { /* a page from a file may not store */ }
    show();
  });
  system.addEventListener("change", show);
  show();

  const form = one("filter"), claim = one("claim"), problem = one("problem"), text = one("text");
  const groups = all(".group").map((group) => ({
    group, claim: group.dataset.claim, heading: group.querySelector("h3").textContent.toLowerCase(),
    reports: all(".report", group).map((report) => ({
      report, initially: report.open, problem: report.dataset.problem, verdict: report.dataset.verdict,
      reason: (report.querySelector(".inside > p") || report).textContent.toLowerCase(),
      rows: all("tbody tr", report).map((row) => ({ row, text: row.textContent.toLowerCase() })),
    })),
  }));
  const pressed = (kind) => all(`button[data-${kind}][aria-pressed="true"]`, form).map((button) => button.dataset[kind]);
  const within = (wanted, value) => wanted.length === 0 || wanted.includes(value);

  function filter() {
    const verdicts = pressed("verdict"), rungs = pressed("rung"), words = text.value.toLowerCase().trim();
    const active = verdicts.length + rungs.length > 0 || words || claim.value || problem.value;
    const visible = [];
    let shown = 0, total = 0;
    for (const { group, claim: id, heading, reports } of groups) {
      let any = false;
      for (const r of reports) {
        const here = (!claim.value || id === claim.value) && (!problem.value || r.problem === problem.value);
        const named = heading.includes(words) || r.problem.toLowerCase().includes(words);
        // a report may be inconclusive though each of its rows holds: then its own verdict speaks for the rows
        const own = within(verdicts, r.verdict) && !r.rows.some(({ row }) => within(verdicts, row.dataset.verdict));
        let matches = 0;
        for (const { row, text: content } of r.rows) {
          const match = here && (own || within(verdicts, row.dataset.verdict)) && within(rungs, row.dataset.rung) && (named || content.includes(words));
          row.hidden = !match;
          matches += match;
        }
        const empty = r.rows.length === 0 && here && rungs.length === 0 && within(verdicts, r.verdict) && (named || r.reason.includes(words));
        r.report.hidden = matches === 0 && !empty;
        if (!r.report.hidden) { any = true; visible.push(r); }
        shown += matches;
        total += r.rows.length;
      }
      group.hidden = !any;
    }
    for (const r of visible) r.report.open = active ? visible.length <= 12 || r.initially : r.initially;
    one("nothing").hidden = visible.length > 0;
    one("shown").textContent = `${shown} of ${total} comparisons in ${visible.length} section${visible.length === 1 ? "" : "s"}`;
  }

  form.addEventListener("click", (event) => {
    const button = event.target.closest("button[aria-pressed]");
    if (!button) return;
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    filter();
  });
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    all("button[aria-pressed]", form).forEach((button) => button.setAttribute("aria-pressed", "false"));
    setTimeout(filter);
  });
  const setOpen = (open) => all(".report:not([hidden])").forEach((report) => { report.open = open; });
  one("open").addEventListener("click", () => setOpen(true));
  one("close").addEventListener("click", () => setOpen(false));

  function reveal() {
    const target = /^#r\d+$/.test(location.hash) && one(location.hash.slice(1));
    if (!target) return;
    if (target.hidden) { form.reset(); all("button[aria-pressed]", form).forEach((b) => b.setAttribute("aria-pressed", "false")); filter(); }
    target.open = true;
    target.scrollIntoView();
    target.querySelector("summary").focus({ preventScroll: true });
  }
  addEventListener("hashchange", reveal);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#r']");
    if (link && link.hash === location.hash) reveal();
  });

  theme.hidden = form.hidden = false;
  filter();
  reveal();
})();

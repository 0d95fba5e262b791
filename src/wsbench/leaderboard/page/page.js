"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const colours = () => {
    const style = getComputedStyle(root);
    const of = (name) => style.getPropertyValue(name).trim();
    const text = { labelColor: of("--ink"), titleColor: of("--ink") };
    return {
      background: null, font: "system-ui, sans-serif", view: { stroke: of("--line") },
      axis: { ...text, gridColor: of("--line"), domainColor: of("--dim"), tickColor: of("--dim") },
      legend: { ...text, layout: { top: { anchor: "start", direction: "vertical", margin: 4 } } }, header: text, title: { color: of("--ink") },
    };
  };

  // charts are drawn when they come near the screen, and again when the theme changes
  const drawn = new Map();
  const narrow = (part) => {  // a legend of five columns is wider than a phone
    if (part === null || typeof part !== "object") return;
    if (part.legend && part.legend.columns > 3) part.legend.columns = 3;
    Object.values(part).forEach(narrow);
  };
  const draw = async (element) => {
    drawn.set(element, true);
    const spec = JSON.parse(JSON.stringify(specs[element.dataset.spec]));
    delete spec.config;
    if (element.clientWidth < 400) narrow(spec);
    const options = { actions: { export: true, source: false, compiled: false, editor: false }, renderer: "svg", config: colours() };
    await vegaEmbed(element, spec, options);
    element.dataset.drawn = root.dataset.theme;
  };
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
  }, { rootMargin: "600px" });

  const theme = (name) => {
    root.dataset.theme = name;
    for (const element of drawn.keys()) draw(element);
  };
  document.getElementById("theme").addEventListener("click", () => theme(root.dataset.theme === "dark" ? "light" : "dark"));
  dark.addEventListener("change", (event) => theme(event.matches ? "dark" : "light"));
  theme(dark.matches ? "dark" : "light");
  document.querySelectorAll(".chart").forEach((element) => seen.observe(element));

  // a click on a head sorts by that column: numbers as numbers, what is empty last
  const key = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = Number(text);
    return text !== "" && Number.isFinite(number) ? number : text;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b));
  };
  for (const head of document.querySelectorAll("table.sortable th")) {
    head.tabIndex = 0;
    const sort = () => {
      const table = head.closest("table");
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => [key(row, head.cellIndex), row]);
      rows.sort(([a], [b]) => (a === "" || b === "" ? compare(a, b) : down ? compare(b, a) : compare(a, b)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  }

  // every word of the filter has to stand in a row
  const filter = document.getElementById("filter");
  const rows = [...document.querySelectorAll("#tables tbody tr")];
  const texts = rows.map((row) => `${row.dataset.table} ${[...row.cells].map((cell) => cell.textContent).join(" ")}`.toLowerCase());
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      count += !row.hidden;
    });
    for (const board of document.querySelectorAll("#tables details.board")) {
      const any = [...board.querySelectorAll("tbody tr")].some((row) => !row.hidden);
      board.hidden = !any;
      if (words.length && any) board.open = true;
    }
    document.getElementById("shown").textContent = `${count} of ${rows.length} rows`;
  };
  filter.addEventListener("input", apply);
  apply();

  // a link to a record opens it
  const open = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target || target.tagName !== "DETAILS") return;
    for (let each = target; each; each = each.parentElement.closest("details")) each.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", open);
  for (const link of document.querySelectorAll(".toc a, nav a")) link.addEventListener("click", () => {
    filter.value = "";  // what it hides could not be shown
    apply();
  });
  // also where the address is that place already, which is no change of it
  for (const link of document.querySelectorAll('a[href^="#"]')) link.addEventListener("click", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.shiftKey) setTimeout(open);
  });
  open();
})();

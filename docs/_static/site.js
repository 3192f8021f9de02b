// What the theme leaves out for readers without a mouse or a screen.
addEventListener("DOMContentLoaded", () => {
  for (const wide of document.querySelectorAll("pre, .table-wrapper")) wide.tabIndex = 0; // arrow keys scroll it
  document.querySelector("aside.sidebar-drawer")?.setAttribute("aria-label", "Pages");
  document.querySelector("aside.toc-drawer")?.setAttribute("aria-label", "On this page");
  for (const lines of document.querySelectorAll(".sig dl")) { // a list of definitions that defines nothing
    lines.prepend(Object.assign(document.createElement("dt"), { textContent: "parameters", className: "heard" }));
  }
});

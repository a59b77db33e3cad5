// Start reveal.js, and shrink what is higher or wider than its page: an author may write more than fits, a lecturer's fonts may be wider.
for (const page of document.querySelectorAll(".slides section:not(:has(> section))")) {
  const body = document.createElement("div");
  body.className = "body";
  body.append(...page.querySelectorAll(":scope > :not(.notes)"));
  page.classList.add("page");
  page.prepend(body);
}
function fit(page) {
  const body = page && page.querySelector(":scope > .body");
  if (!body) return;
  body.style.zoom = 1;
  const style = getComputedStyle(page);
  const room = { high: page.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom), wide: body.clientWidth };
  for (let zoom = 1; zoom > 0.3 && (body.scrollHeight * zoom > room.high || body.scrollWidth * zoom > room.wide + 1); zoom -= 0.02) body.style.zoom = zoom;
}
Reveal.on("ready", (event) => fit(event.currentSlide));
Reveal.on("slidechanged", (event) => fit(event.currentSlide));
Reveal.on("pdf-ready", () => document.querySelectorAll("section.page").forEach(fit));
Reveal.initialize({
  width: 1280, height: 720, margin: 0, center: false, hash: true, slideNumber: "c/t", transition: "none", plugins: [RevealNotes],
});

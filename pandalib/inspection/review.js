"use strict";
const sets = [...document.querySelectorAll("fieldset[data-file]")];
const chosen = (set) => set.querySelector("input:checked");
const save = document.getElementById("save");

function count() {
  const done = sets.filter(chosen).length;
  save.disabled = done === 0;
  document.getElementById("count").textContent = done + " of " + sets.length + " reviewed.";
}

document.addEventListener("change", count);

document.addEventListener("keydown", (event) => {
  const value = { a: "normal", d: "defect" }[event.key];
  const set = event.target.closest("fieldset[data-file]");
  if (!value || !set || event.ctrlKey || event.metaKey || event.altKey) return;
  set.querySelector("input[value=" + value + "]").checked = true;
  count();
  const next = sets[sets.indexOf(set) + 1];
  if (!next) return;
  const folded = next.closest("details");
  if (folded) folded.open = true; // what is folded away takes no focus
  next.querySelector("input").focus();
});

save.addEventListener("click", () => {
  const reviewed = sets.filter(chosen).map((set) => ({
    file: JSON.parse(set.dataset.file),
    verdict: chosen(set).value,
    alarm: set.dataset.alarm === "true",
  }));
  const review = { format: "pandalib review", version: 1, reviewed };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(review, null, 1)]));
  link.download = "pandalib-review.json";
  link.click();
});

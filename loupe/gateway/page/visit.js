// The list of this visit: a card for each picture, the counts above them, and what a screen reader is told.
import { canBeAskedAgain, makeCard, showPreview, showState } from "./card.js";
import { isHarmless, makePreview } from "./preview.js";
import { csv, download, json } from "./table.js";
import { announce, outcome, plural } from "./words.js";

const $ = (id) => document.getElementById(id);
const MOST = 1000; // pictures on the list
const FEW = 3; // are cleared without a question
const SPEAK_EVERY = 4000; // ms; a screen reader would read each change otherwise
const OPEN = ["waiting", "asking"];

export class Visit {
  #pictures = [];
  #actions;
  #numbered = 0;
  #heat = 0;
  #summing = 0; // timers
  #speaking = 0;
  #text = "";
  #latest = null; // the picture that was answered or failed last, until it is told

  // again(pictures) and cancel(pictures) are called when a button is pressed
  constructor({ again, cancel }) {
    this.#actions = { again: (picture) => again([picture]), cancel: (picture) => cancel([picture]) };
    this.#setHeat(70);
    $("cancel-all").addEventListener("click", () => { cancel(this.#in(...OPEN)); $("visit-title").focus(); });
    $("again-all").addEventListener("click", () => { again(this.#pictures.filter(canBeAskedAgain)); $("visit-title").focus(); });
    $("clear").addEventListener("click", () => {
      const count = this.#pictures.length;
      if (count > FEW && !confirm(`Clear the list of its ${plural(count, "picture")} and what was answered?`)) return;
      cancel(this.#in(...OPEN));
      this.#clear();
      $("file").focus();
    });
    $("as-csv").addEventListener("click", () => download("loupe.csv", "text/csv", csv(this.#pictures)));
    $("as-json").addEventListener("click", () => download("loupe.json", "application/json", json(this.#pictures)));
    $("list").addEventListener("input", (event) => { if (event.target.type === "range") this.#setHeat(event.target.value); });
    window.addEventListener("beforeunload", (event) => { if (this.#in(...OPEN).length) event.preventDefault(); });
  }

  // How many more pictures there is room for.
  room() { return MOST - this.#pictures.length; }

  full(leftOut) {
    return `The list holds ${plural(MOST, "picture")}, so ${plural(leftOut, "picture")} had no room on it. `
      + "Download it, clear it, and choose these again; predict.py takes folders of any size.";
  }

  // Put pictures on top of the list, in their order, and return them.
  add(found) {
    const pictures = found.map((each) => ({ ...each, id: ++this.#numbered, state: "waiting", note: "", answer: null }));
    const cards = document.createDocumentFragment();
    for (const picture of pictures) {
      picture.card = makeCard(picture, this.#actions);
      picture.card.querySelector("input[type=range]").value = this.#heat;
      cards.append(picture.card);
    }
    this.#pictures.push(...pictures);
    $("list").prepend(cards);
    for (const picture of pictures) this.#previewAtOnce(picture);
    $("visit").hidden = !this.#pictures.length;
    const { top } = $("visit").getBoundingClientRect();
    if (pictures.length && (top < 0 || top > innerHeight * 0.7)) // the new ones are out of sight
      $("visit").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    return pictures;
  }

  changed(picture) {
    showState(picture.card, picture);
    if (["answered", "failed"].includes(picture.state)) this.#latest = picture;
    if (picture.state === "answered") this.#preview(picture);
    this.#summing ||= setTimeout(() => this.#sumUp(), 100);
  }

  async #previewAtOnce(picture) {
    if (picture.file && await isHarmless(picture.file)) this.#preview(picture);
  }

  async #preview(picture) {
    if (!picture.file || picture.hasPreview) return;
    picture.hasPreview = true;
    picture.preview = await makePreview(picture.file, () => this.#pictures.includes(picture));
    if (!picture.preview && picture.state !== "answered") picture.hasPreview = false; // perhaps it is no picture
    else if (this.#pictures.includes(picture)) showPreview(picture.card, picture.preview, picture.name);
    else if (picture.preview) URL.revokeObjectURL(picture.preview); // cleared meanwhile
  }

  #in(...states) {
    return this.#pictures.filter(({ state }) => states.includes(state));
  }

  #setHeat(value) {
    this.#heat = value;
    $("list").style.setProperty("--heat", value / 100);
    for (const slider of $("list").querySelectorAll("input[type=range]")) slider.value = value;
  }

  #clear() {
    for (const { preview } of this.#pictures) if (preview) URL.revokeObjectURL(preview);
    this.#pictures = [];
    this.#latest = null;
    $("list").replaceChildren();
    $("visit").hidden = true;
    this.#sumUp();
  }

  #sumUp() {
    this.#summing = 0;
    const open = this.#in(...OPEN).length;
    const answered = this.#in("answered").length;
    const failed = this.#in("failed").length;
    const cancelled = this.#in("cancelled").length;
    const text = [
      `${plural(this.#pictures.length, "picture")}: ${answered} answered`,
      failed && `${failed} failed`, cancelled && `${cancelled} cancelled`, open && `${open} to go`,
    ].filter(Boolean).join(", ");
    $("counts").textContent = text;
    $("cancel-all").hidden = !open;
    $("again-all").hidden = !this.#pictures.some(canBeAskedAgain);
    $("progress").hidden = !open;
    Object.assign($("progress"), { max: Math.max(1, this.#pictures.length), value: this.#pictures.length - open });
    this.#speak(text, open > 0);
  }

  // Tell a screen reader where it stands: now and then, and at the end. Of the last one, what came of it.
  #speak(text, isOpen) {
    this.#text = text;
    if (isOpen) {
      this.#speaking ||= setTimeout(() => { this.#speaking = 0; announce($("spoken"), this.#text); }, SPEAK_EVERY);
      return;
    }
    clearTimeout(this.#speaking);
    this.#speaking = 0;
    announce($("spoken"), (this.#latest ? `${outcome(this.#latest)} ` : "") + text);
    this.#latest = null;
  }
}

// Asks for pictures, a few at a time and in their order. Where all would fail alike (no network, no key) it holds, and
// what was under way waits again.
const PARALLEL = 3;
const TRIES = 6; // of one picture, while the gateway says that it is busy
const LONGEST_PAUSE = 30; // seconds between them

export class Queue {
  #ask; #changed; #held;
  #waiting = [];
  #active = new Map(); // picture → AbortController
  #hold = null; // the problem that holds it

  // ask(picture, signal) → answer; changed(picture) after each step; held(problem), or held(null) when it goes on
  constructor({ ask, changed, held }) {
    this.#ask = ask;
    this.#changed = changed;
    this.#held = held;
  }

  get isHeld() { return this.#hold !== null; }

  add(pictures) {
    for (const picture of pictures) this.#set(picture, "waiting");
    this.#waiting.push(...pictures);
    this.#fill();
  }

  cancel(pictures) {
    const gone = new Set(pictures);
    this.#waiting = this.#waiting.filter((picture) => !gone.has(picture));
    for (const picture of pictures) {
      this.#active.get(picture)?.abort();
      if (["waiting", "asking"].includes(picture.state)) this.#set(picture, "cancelled");
    }
    if (!this.#waiting.length && !this.#active.size) this.#release();
  }

  goOn() {
    this.#release();
    this.#fill();
  }

  #release() {
    if (!this.#hold) return;
    this.#hold = null;
    this.#held(null);
  }

  #fill() {
    while (!this.#hold && this.#active.size < PARALLEL && this.#waiting.length) this.#run(this.#waiting.shift());
  }

  async #run(picture) {
    const controller = new AbortController();
    this.#active.set(picture, controller);
    this.#set(picture, "asking");
    try {
      const answer = await this.#askPatiently(picture, controller.signal);
      if (!controller.signal.aborted) this.#set(picture, "answered", { answer });
    } catch (problem) {
      if (!controller.signal.aborted) this.#fail(picture, problem);
    }
    if (this.#active.get(picture) === controller) this.#active.delete(picture);
    this.#fill();
  }

  #fail(picture, problem) {
    if (!problem.gone && problem.status !== 401) return this.#set(picture, "failed", { note: problem.message, isFinal: problem.isFinal });
    this.#waiting.unshift(picture);
    this.#set(picture, "waiting");
    this.#hold = problem;
    this.#held(problem);
  }

  // A gateway that is busy, or changes its model, says how long to wait.
  async #askPatiently(picture, signal) {
    for (let tried = 1; ; tried++) {
      try {
        return await this.#ask(picture, signal);
      } catch (problem) {
        if (!problem.retryAfter || tried === TRIES || signal.aborted) throw problem;
        const seconds = Math.min(LONGEST_PAUSE, problem.retryAfter);
        this.#set(picture, "asking", { note: `${problem.message} Asked again in ${seconds} s, ${TRIES - tried} times at most.` });
        await pause(seconds * 1000 + Math.random() * 500, signal); // not all at the same moment
        this.#set(picture, "asking");
      }
    }
  }

  #set(picture, state, { note = "", answer = null, isFinal = false } = {}) {
    Object.assign(picture, { state, note, answer, isFinal });
    this.#changed(picture);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

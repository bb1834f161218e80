// "Wrong? It is …": keeps a picture under the label that it should have had, where the gateway does so.
import { correct } from "./ask.js";

export const isOffered = () => document.getElementById("feedback") !== null;

// Fill the part of a card that corrects it, once it is opened.
export function fillCorrection(details, picture) {
  const choice = document.createElement("select");
  choice.setAttribute("aria-label", `What ${picture.name} is`);
  const labels = Object.keys(picture.answer.scores).filter((label) => label !== picture.answer.label);
  choice.append(...labels.map((label) => new Option(label, label)));
  const button = Object.assign(document.createElement("button"), { textContent: "Send" });
  const says = document.createElement("p");
  says.setAttribute("role", "status");
  const form = document.createElement("form");
  form.append(choice, button);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      const { kept, label } = await correct(picture, choice.value);
      picture.corrected = label;
      says.textContent = kept ? `Kept as ${label}. Thank you.` : "This picture was corrected before. Thank you.";
    } catch (problem) {
      says.textContent = problem.message;
    }
    button.disabled = false;
  });
  details.append(form, says);
}

// The API key, where the gateway wants one. It is kept for this tab alone.
const $ = (id) => document.getElementById(id);
let goOn = () => {};

export function keyHeader() {
  const key = sessionStorage.getItem("key");
  return key ? { "X-API-Key": key } : {};
}

// Show the form, and call `then` with each key that is given.
export function askForKey(then) {
  goOn = then;
  $("key-form").hidden = false;
  $("key").focus();
}

export function hideKeyForm() {
  $("key-form").hidden = true;
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!key) return;
  if (!/^[\x21-\x7e]+$/.test(key)) { // no header could carry it
    $("problem").firstElementChild.textContent = "This is no key: keys are letters, digits and signs of ASCII, without a space. Copy it again.";
    return;
  }
  sessionStorage.setItem("key", key);
  $("key").value = "";
  goOn();
});

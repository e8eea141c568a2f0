// Reloads the stages of the live page every two seconds, and the page itself once the report is published.
const part = document.getElementById("stages");
const silence = document.getElementById("no-answer"); // without it a page that has stopped looks like a run that has
let since = "";
const refresh = async () => {
  const answer = await fetch(location.pathname + "/stages", {cache: "no-store", signal: AbortSignal.timeout(30000)});
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  if (answer.status === 205) location.reload(); // the report is published
  else part.innerHTML = await answer.text();
  since = silence.textContent = "";
};
const failed = () => {
  since ||= new Date().toTimeString().slice(0, 8);
  silence.textContent = `no answer since ${since}`;
};
const again = () => setTimeout(() => refresh().catch(failed).finally(again), 2000);
if (part) again();

// Reloads the stages of the live page every two seconds, and the page itself once the report is published.
const part = document.getElementById("stages");
const refresh = async () => {
  const answer = await fetch(location.pathname + "/stages", {cache: "no-store"});
  if (answer.status === 205) location.reload(); // the report is published
  else if (answer.ok) part.innerHTML = await answer.text();
};
const again = () => setTimeout(() => refresh().catch(() => {}).finally(again), 2000);
if (part) again();

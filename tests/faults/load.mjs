// One client process of a load over the HTTP API, with fetch: charges, holds and their ends, and on
// file what it was told, as load.py has it. `node load.mjs JOB.json`.

import { existsSync, openSync, readFileSync, writeSync } from "node:fs";
import { randomInt, randomUUID } from "node:crypto";

const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
const FEATURES = ["generate_goal", "generate_insight", "analyze_strategy"];
const began = Date.now();
const over = () => existsSync(job.stop) || Date.now() - began > job.seconds * 1000;
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const pick = (list) => list[randomInt(list.length)];

async function post(path, body, key) {
  const response = await fetch(`${job.url}/api/v1${path}`, {
    method: "POST",
    headers: {
      Authorization: `Bearer ${job.api_key}`,
      "Content-Type": "application/json",
      "Idempotency-Key": key,
    },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(job.deadline * 1000),
  });
  return { status: response.status, headers: response.headers, answer: await response.json() };
}

// The same key each time, until there is an answer or the time is over.
async function ask(request) {
  const giveUp = Date.now() + job.deadline * 1000;
  let unclear = false;
  for (;;) {
    let reply = null;
    try {
      reply = await post(request.path, request.body, job.new_keys ? randomUUID() : request.key);
    } catch {
      unclear = true; // no answer, or half of one
    }
    if (reply !== null && reply.status < 300) return { told: "ok", ...reply };
    const code = reply?.answer.code;
    if (reply !== null && reply.status < 500 && code !== "in_flight") {
      return unclear ? { told: "unknown", why: code } : { told: "refused", why: code };
    }
    unclear ||= code === "in_flight" || (reply !== null && reply.answer.outcome !== "not_charged");
    if (Date.now() > giveUp) return { told: unclear ? "unknown" : "not_charged", why: code ?? "" };
    await pause(20 + randomInt(80));
  }
}

async function worker(name) {
  const file = openSync(`${job.acks}/${name}.jsonl`, "a", 0o600);
  const done = [];
  const unclear = [];

  async function tell(request) {
    const { verb, subject = null } = request;
    const line = { request: request.name, verb, keyed: true, subject };
    writeSync(file, JSON.stringify({ ...line, told: "asked" }) + "\n");
    const start = Date.now();
    const { told, why = "", headers, answer } = await ask(request);
    const facts = { told, why, seconds: (Date.now() - start) / 1000 };
    if (told === "ok" && verb !== "release") {
      facts.id = answer.id;
      facts.tokens = answer.tokensDeducted ?? answer.tokens;
      facts.balance = answer.remainingBalance;
      facts.replayed = headers.get("Idempotency-Replayed") === "true";
      facts.booked = true;
    }
    // As Python writes it: the tests look for these words.
    const text = JSON.stringify({ ...line, ...facts }).replace('"told":"', '"told": "');
    writeSync(file, text + "\n");
    if (told === "unknown") unclear.push(request);
    return told === "ok" ? answer : null;
  }

  for (let count = 1; !over(); count += 1) {
    const [organization, userId] = pick(job.people);
    const place = `/organizations/${organization}`;
    const id = `${name}-${count}`;
    const body = {
      feature: pick(FEATURES),
      units: 1 + randomInt(2),
      userId,
      metadata: { request: id },
    };
    const request = { name: id, verb: "charge", path: `${place}/charges`, body, key: randomUUID() };
    if (randomInt(3) > 0) {
      if ((await tell(request)) !== null) done.push(request);
      if (randomInt(6) === 0 && done.length > 0) await tell(pick(done));
      continue;
    }
    Object.assign(request, { verb: "hold", path: `${place}/reservations` });
    body.holdSeconds = 3600;
    const held = await tell(request);
    const end = pick(["deduct", "deduct", "release", "forget"]);
    if (held === null || end === "forget") continue;
    await tell({
      name: `${id}-${end}`,
      verb: end,
      subject: held.id,
      path: `${place}/reservations/${held.id}/${end}`,
      body: {},
      key: randomUUID(),
    });
  }
  for (const request of [...unclear, ...done.slice(-20)]) await tell(request);
}

await Promise.all(
  Array.from({ length: job.threads }, (_, number) => worker(`${job.name}-${number}`)),
);

// Signs or verifies what standard input asks for, with the published library of Standard Webhooks.
const { readFileSync } = require("node:fs");
const { Webhook } = require("standardwebhooks");

const asked = JSON.parse(readFileSync(0, "utf8"));
const webhook = new Webhook(asked.secret);
let answer;
if (asked.sign) {
  answer = { signature: webhook.sign(asked.sign, new Date(asked.time), asked.body) };
} else {
  try {
    answer = { verified: webhook.verify(asked.body, asked.headers) };
  } catch (error) {
    answer = { error: String(error) };
  }
}
process.stdout.write(JSON.stringify(answer));

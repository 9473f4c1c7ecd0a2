// Why a prompt was not blended, in plain words. The report's own words stand below them.

const REASONS = [
  [/^asked for: reuse is none/, "You asked for a full prefill.", "Nothing stored was used, and vLLM’s own prefix cache was kept out of it, so that this is the plain baseline."],
  [/^asked for: reuse is prefix_cache/, "You asked for vLLM’s own prefix cache alone.", "Only tokens at the prompt’s very beginning can come from it."],
  [/holds no passages|no documents were given/, "Nothing was retrieved, so there was nothing to blend.", "The collection may be empty, or still being read."],
  [/no control channel/, "vLLM runs without kvblend’s connector.", "It answers, but nothing can be reused. Start it by `kvblend serve`, or give it the connector."],
  [/no recompute ratio below .* the request's target/, "This model cannot be blended as closely as this request asks.", "Its calibration found no ratio that keeps answers within the request’s `target_kl`, so they are computed in full."],
  [/no recompute ratio below/, "This model cannot be blended closely enough.", "Its calibration found no ratio that keeps answers within the target, so they are computed in full."],
  [/^blending cannot pay/, "A full prefill was expected to be as fast.", "Short prompts and few stored tokens cost more to blend than they save."],
  [/no passage of this prompt is in the store/, "None of these passages’ KV is stored yet.", "It is made in the background after this answer; the next question that meets them reuses it."],
  [/gave no report/, "vLLM’s connector did not tell what it did.", "The answer is right; how its context came about is not known."],
  [/could not be found out/, "The store could not be read.", "vLLM computed the whole context; its log says what went wrong."],
  [/a context of \d+ tokens is over/, "This context is longer than the connector has room for.", "Layers with a sliding window are blended in pages of its own: `KVBLEND_SCRATCH_TOKENS` says for how many tokens."],
  [/goes to other engines/, "The KV of this prompt leaves the engine, without a mark that it is a blend’s.", "Others would take it for exact, so nothing was blended. The service sends that mark where it and the connector are of one version."],
  [/did not come over/, "The KV of this prompt did not come over from the engine that made it.", "The engine that answers computed the whole context itself."],
  [/^it was preempted/, "vLLM ran out of KV cache while this request was under way.", "What it was blended behind was gone when it went on. More KV cache helps, or a lower `--max-num-seqs`."],
  [/messages hold more than text/, "This chat holds more than text.", "Images and the like go to vLLM as they are, and no such prompt is blended."],
  [/by its messages alone/, "This engine is told chats by their messages alone.", "Only ingested passages can be blended there."],
  [/does not render the messages/, "vLLM gives no tokens for these messages.", "Without its tokens nothing in a prompt can be reused."],
  [/^the (blend|step) failed|could not be begun/, "The blend failed, and vLLM computed everything itself.", "The answer is right, only later; vLLM’s log says what went wrong."],
];

export function plainReason(reason) {
  const [, title, more] = REASONS.find(([pattern]) => pattern.test(reason)) ?? [null, "The whole context was computed by vLLM.", ""];
  return { title, more };
}

export const OUTCOMES = {
  blended: "Blended",
  prefix_hit: "From vLLM’s own prefix cache",
  prefilled: "Prefilled in full",
};

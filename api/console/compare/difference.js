// Where two answers differ, word by word: the longest run of words that both have in order is common.

const parts = (text) => text.trim().match(/\s*\S+/gu) ?? [];

export function difference(one, other) {
  const [a, b] = [parts(one), parts(other)];
  const [bareA, bareB] = [a, b].map((all) => all.map((word) => word.trim()));
  const rows = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      rows[i][j] = bareA[i] === bareB[j] ? rows[i + 1][j + 1] + 1 : Math.max(rows[i + 1][j], rows[i][j + 1]);
    }
  }
  const inBoth = [new Set(), new Set()];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (bareA[i] === bareB[j]) { inBoth[0].add(i); inBoth[1].add(j); i += 1; j += 1; }
    else if (rows[i + 1][j] >= rows[i][j + 1]) i += 1;
    else j += 1;
  }
  const runs = (words, common) => words.reduce((all, word, index) => {
    const own = !common.has(index);
    if (all.length && all.at(-1)[1] === own) all.at(-1)[0] += word;
    else all.push([word, own]);
    return all;
  }, []);
  const shared = rows[0][0];
  const longest = Math.max(a.length, b.length);
  return { one: runs(a, inBoth[0]), other: runs(b, inBoth[1]), shared, longest, same: shared === longest };
}

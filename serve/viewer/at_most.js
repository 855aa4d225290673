/** Runs tasks in the order in which they come, at most `most` at a time; each call gives its task's result. */
export function atMost(most) {
  const waiting = [];
  let running = 0;
  return async (task) => {
    if (running < most) running += 1;
    else await new Promise((go) => waiting.push(go));
    try {
      return await task();
    } finally {
      if (waiting.length > 0) waiting.shift()();
      else running -= 1;
    }
  };
}

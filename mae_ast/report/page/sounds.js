// One sound plays at a time.
const playing = { audio: null, end: null };

function stopSound() {
  if (playing.audio === null) return;
  const { audio, end } = playing;
  playing.audio = playing.end = null;
  audio.pause();
  end();
}

// Play a sound of the page from a second on; onTime is called with the time in seconds, onEnd at the end.
function playSound(number, onTime, onEnd, onFailure, from = 0) {
  stopSound();
  const audio = new Audio(values.sounds[number]);
  playing.audio = audio;
  playing.end = onEnd;
  audio.addEventListener("ended", () => { if (playing.audio === audio) stopSound(); });
  if (from > 0) audio.addEventListener("loadedmetadata", () => { audio.currentTime = from; });
  const follow = () => {
    if (playing.audio !== audio) return;
    onTime(audio.currentTime);
    requestAnimationFrame(follow);
  };
  audio.play().then(follow).catch(() => {
    if (playing.audio !== audio) return;
    stopSound();
    onFailure();
  });
}

// A button that plays a sound, with a method play(from).
function playerButton(number, label, onTime = () => {}, onEnd = () => {}) {
  const button = element("button", { type: "button", "data-sound": number }, `▶ ${label}`);
  let isOn = false;
  button.play = (from = 0) => {
    playSound(number, onTime, () => {
      isOn = false;
      button.textContent = `▶ ${label}`;
      onEnd();
    }, () => { button.textContent = "this browser cannot play Ogg/Opus"; }, from);
    isOn = true;
    button.textContent = `■ ${label}`;
  };
  button.addEventListener("click", () => (isOn ? stopSound() : button.play()));
  return button;
}

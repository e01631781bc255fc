// Reconstructions: spectrograms with players.
const MEL_BINS = 128, MASKED = 255;
// The colour map "magma" at nine places.
const MAGMA = [[0, 0, 4], [28, 16, 68], [79, 18, 123], [129, 37, 129], [181, 54, 122], [229, 80, 100],
  [251, 135, 97], [254, 194, 135], [252, 253, 191]];

function magma(level) {
  const place = (level / 254) * (MAGMA.length - 1), first = Math.min(Math.floor(place), MAGMA.length - 2);
  return MAGMA[first].map((value, n) => value + (MAGMA[first + 1][n] - value) * (place - first));
}

function canvasOf({ frames, pixels }) {
  const levels = Uint8Array.from(atob(pixels), (character) => character.charCodeAt(0));
  const canvas = element("canvas", { width: frames, height: MEL_BINS });
  const context = canvas.getContext("2d"), image = context.createImageData(frames, MEL_BINS);
  const colours = Array.from({ length: MASKED }, (_, level) => magma(level));
  for (let t = 0; t < frames; t += 1) {
    for (let f = 0; f < MEL_BINS; f += 1) {
      const level = levels[t * MEL_BINS + f], at = ((MEL_BINS - 1 - f) * frames + t) * 4;
      if (level !== MASKED) image.data.set([...colours[level], 255], at); // else transparent
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// A spectrogram with a button for each sound, [number, label]; a click on it plays the first from there.
function audible(spectrogram, caption, sounds) {
  const playhead = element("div", { class: "playhead" });
  const seconds = spectrogram.frames / 100;
  const onTime = (time) => {
    playhead.style.display = "block";
    playhead.style.left = `${Math.min(100, (time / seconds) * 100)}%`;
  };
  const onEnd = () => { playhead.style.display = "none"; };
  const buttons = sounds.map(([number, label]) => playerButton(number, label, onTime, onEnd));
  const box = element("div", { class: "spectrogram" }, canvasOf(spectrogram), playhead);
  box.addEventListener("click", (event) => {
    const place = box.getBoundingClientRect();
    buttons[0].play(((event.clientX - place.left) / place.width) * seconds);
  });
  return element("div", {}, element("div", { class: "soft" }, caption), box,
    element("div", { class: "players" }, ...buttons));
}

function clipCard(clip) {
  const rows = clip.runs.map((each, row) => {
    const run = values.runs.length > 1 ? `${values.runs[each.run]}: ` : "";
    const percent = `${Math.round(each.masked * 100)} % masked`;
    const error = each.mse === null ? "" : `, MSE of masked patches ${numberText(each.mse)}`;
    const scaled = each.rescaled ? " with the original's mean and std of each patch" : "";
    return element("div", { class: "row" },
      row === 0 ? audible(clip.original, "original", [[clip.sound, "recording"], [clip.inverted, "after inversion"]])
        : element("div"),
      audible(each.visible, `${run}visible, ${percent}`, [[each.visible.sound, "visible"]]),
      audible(each.rebuilt, `${run}rebuilt${scaled}${error}`, [[each.rebuilt.sound, "rebuilt"]]));
  });
  return element("div", { class: "card clip" },
    element("div", {}, element("b", {}, clip.name), ` (${numberText(clip.seconds)} s)`), ...rows);
}

function reconstructionsSection() {
  return [
    element("p", {}, "Log-mel of validation clips, with the masks of the run's validation. Grey: masked," +
      " silent in the sound. Rebuilt: visible patches kept, masked ones predicted. Sounds of spectrograms" +
      " are made by Griffin-Lim, which costs quality by itself; “after inversion” is the original treated" +
      " in the same way. The sounds of a clip have the same gain. Click a spectrogram to play from there."),
    ...values.clips.map(clipCard),
  ];
}

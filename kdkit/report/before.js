// A browser in a bare POSIX locale calls its language what Intl does not know, and uPlot asks Intl for it.
try { new Intl.NumberFormat(navigator.language); } catch { Object.defineProperty(navigator, "language", { value: "en-US" }); }

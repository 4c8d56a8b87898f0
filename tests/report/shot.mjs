// node shot.mjs PAGE.html BROWSER: what the page says, draws and complains of at three sizes and in both colours, as JSON.
import { createRequire } from "node:module";
const puppeteer = createRequire(process.env.KDKIT_NODE_MODULES + "/")("puppeteer-core");
const [, , file, browserPath] = process.argv;
const browser = await puppeteer.launch({
  executablePath: browserPath, headless: "shell",
  args: ["--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-setuid-sandbox", "--single-process"],
});
const page = await browser.newPage();
const found = { complaints: [], requests: [], seen: [] };
page.on("console", message => found.complaints.push(message.text()));
page.on("pageerror", error => found.complaints.push(error.message));
page.on("dialog", async dialog => { found.complaints.push("dialog"); await dialog.dismiss(); });
page.on("request", request => { if (!/^(file|data):/.test(request.url())) found.requests.push(request.url()); });
for (const [width, scheme] of [[1200, "light"], [1200, "dark"], [390, "light"]]) {
  await page.setViewport({ width, height: 900 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto("file://" + file, { waitUntil: "load" });
  const over = await page.$(".chart .u-over");
  if (over) {
    await over.scrollIntoView();
    const box = await over.boundingBox();
    await page.mouse.move(box.x + box.width / 2, box.y + 30);
    const value = () => document.querySelector(".u-legend").innerText.includes("%");
    await page.waitForFunction(value, { timeout: 10000 }).catch(() => {});
  }
  found.seen.push(await page.evaluate(() => ({
    wide: document.documentElement.scrollWidth,
    charts: document.querySelectorAll(".chart canvas").length,
    paper: getComputedStyle(document.body).backgroundColor,
    legend: document.querySelector(".u-legend")?.innerText,
    dim: [...document.querySelectorAll(".key label *")].filter(part => getComputedStyle(part).opacity !== "1").length,
  })));
}
if (await page.$("figure img")) {
  await page.$eval("figure img", picture => picture.click());
  found.zoomed = await page.$eval("figure img", picture => picture.classList.contains("whole"));
}
await browser.close();
console.log(JSON.stringify(found));

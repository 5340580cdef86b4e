//! A headless Chromium, where one is installed: it opens a page, types and clicks, and reports what a script sees.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::sleep;

use super::page::ask;
use super::process::Process;
use super::{LIMIT, POLL_INTERVAL};

/// One browser with one window.
pub struct Browser {
    client: Client,
    /// Where chromedriver listens.
    driver: String,
    /// The id of the browser's own process, which outlives its driver.
    process: Option<Pid>,
    // Dropped before the folder that the browser writes to.
    _chromedriver: Process,
    _profile: TempDir,
    _turn: SemaphorePermit<'static>,
}

impl Browser {
    /// Starts a browser, after those of other tests have ended; `None`, with a printed word, where Chromium or its
    /// driver is not installed.
    ///
    /// # Panics
    ///
    /// If it is installed and does not start.
    pub async fn start() -> Option<Self> {
        let (Some(driver), Some(chromium)) = (on_path(&["chromedriver"]), on_path(&CHROMIUM)) else {
            println!("SKIPPED: no chromedriver and Chromium on the PATH");
            return None;
        };
        // One takes a few hundred megabytes.
        let turn = TURNS.acquire().await.expect("it is never closed");
        let profile = tempfile::tempdir().expect("a folder");
        let (chromedriver, port) = start_driver(&driver).await;
        let driver = format!("127.0.0.1:{port}");
        let arguments = [
            "--headless=new".to_owned(),
            // Needs privileges that tests do not have everywhere; the page is the only one that is opened.
            "--no-sandbox".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-gpu".to_owned(),
            "--no-first-run".to_owned(),
            "--window-size=1440,900".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        let capabilities = json!({
            "browserName": "chrome",
            "goog:chromeOptions": { "binary": chromium, "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let capabilities = capabilities.as_object().expect("an object").clone();
        let connect = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://{driver}"))
            .await;
        let client = connect.expect("the browser starts");
        let process = client.capabilities().and_then(|all| all.get("goog:processID")?.as_i64());
        let process = process.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Some(Self { client, driver, process, _chromedriver: chromedriver, _profile: profile, _turn: turn })
    }

    /// Opens the page at `address`, which may have more behind its host, and waits until it shows what the server knows.
    pub async fn open(&self, address: &str) {
        let slash = if address.contains('/') { "" } else { "/" };
        self.client.goto(&format!("http://{address}{slash}")).await.expect("the page loads");
        self.until("the page is live", "return document.body.dataset.ready === 'yes'").await;
    }

    /// What a script returns.
    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Waits until a script returns true, and reports the page's text if it does not.
    pub async fn until(&self, what: &str, script: &str) {
        let begin = Instant::now();
        while self.run(script).await != json!(true) {
            if begin.elapsed() > LIMIT {
                let shown = self.text("body").await;
                panic!("not within {LIMIT:?}: {what}; the page shows\n{shown}");
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// The text of the first element that a selector finds, as it is shown.
    pub async fn text(&self, selector: &str) -> String {
        let text = self.run(&format!("return document.querySelector({})?.innerText ?? ''", json!(selector))).await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Types into whatever has the focus.
    pub async fn press(&self, keys: &[Key]) {
        let keys: String = keys.iter().map(|key| char::from(*key)).collect();
        self.enter(&keys).await;
    }

    /// Types text into whatever has the focus.
    pub async fn enter(&self, text: &str) {
        let focused = self.client.active_element().await.expect("something has the focus");
        focused.send_keys(text).await.expect("it takes keys");
    }

    /// Clicks on the element that a selector finds, as with a mouse.
    pub async fn click(&self, selector: &str) {
        let found = self.client.find(Locator::Css(selector)).await;
        let found = found.unwrap_or_else(|error| panic!("{selector}: {error}"));
        found.click().await.unwrap_or_else(|error| panic!("{selector}: {error}"));
    }

    /// Lets the page believe in a setting of the system: `prefers-color-scheme`, for instance.
    pub async fn prefer(&self, feature: &str, value: &str) {
        let parameters = json!({ "features": [{ "name": feature, "value": value }] });
        self.order("goog/cdp/execute", &json!({ "cmd": "Emulation.setEmulatedMedia", "params": parameters })).await;
    }

    /// What the browser's console has shown since the last call: failed scripts and refused loads among it.
    pub async fn console(&self) -> Vec<String> {
        let log = self.order("se/log", &json!({ "type": "browser" })).await;
        let log = log.as_array().expect("a list").clone();
        log.iter().map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// A command that only this browser knows.
    async fn order(&self, command: &str, parameters: &Value) -> Value {
        let session = self.client.session_id().await.expect("a session").expect("with an id");
        let path = format!("/session/{session}/{command}");
        let answer =
            ask(&self.driver, "POST", &path, &[("content-type", "application/json")], &parameters.to_string()).await;
        assert_eq!(answer.status, 200, "{command}: {}", answer.body);
        let mut answer: Value = serde_json::from_str(&answer.body).expect("JSON");
        answer["value"].take()
    }
}

impl std::fmt::Debug for Browser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Browser").field("driver", &self.driver).finish_non_exhaustive()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Without a runtime to wait for, an orderly end cannot be asked for. It fails where the browser has ended.
        if let Some(process) = self.process {
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

/// Starts the driver, and returns where it listens. It draws a port of IPv6 and gives up where the same one of IPv4 is
/// taken, as it may be beside other tests.
async fn start_driver(driver: &Path) -> (Process, String) {
    let mut failed = Vec::new();
    for _ in 0..DRAWS {
        let mut chromedriver = Process::start(Command::new(driver).arg("--port=0"));
        match chromedriver.find_text("ChromeDriver was started successfully on port ", LIMIT).await {
            Ok(port) => return (chromedriver, port.trim_end_matches('.').to_owned()),
            Err(output) => failed.push(output),
        }
    }
    panic!("the driver does not start: {failed:#?}");
}

fn on_path(names: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let folders: Vec<PathBuf> = env::split_paths(&path).collect();
    names.iter().find_map(|name| folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file()))
}

const CHROMIUM: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
/// How often a driver is started.
const DRAWS: usize = 10;
static TURNS: Semaphore = Semaphore::const_new(1);

//! A headless Chromium, driven by ChromeDriver, which reports its errors.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "no test uses all helpers, and `expect` would fail in a test that does"
)]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;

pub struct Browser {
    pub client: Client,
    driver: Driver,
    root: String,
}

/// The process of ChromeDriver, which ends with the test, and its browser with it.
struct Driver {
    process: Child,
    _profile: TempDir,
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The signal lets the driver end its browser.
        let _ = Command::new("kill")
            .arg(self.process.id().to_string())
            .status();
        let _ = self.process.wait();
    }
}

/// The place of an element in the window, in pixels.
#[derive(Clone, Copy)]
pub struct Rectangle {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

#[derive(Clone, Copy)]
pub struct Screen {
    pub width: u32,
    pub dark: bool,
}

pub const DESK: Screen = Screen {
    width: 1440,
    dark: false,
};
pub const PHONE: Screen = Screen {
    width: 360,
    dark: true,
};

impl Browser {
    /// Opens pages below `root`.
    pub async fn open(root: String, Screen { width, dark }: Screen) -> Self {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is installed");
        let said = BufReader::new(process.stdout.take().expect("piped"))
            .lines()
            .map_while(Result::ok);
        let port = said
            .filter_map(|line| {
                line.split_once("successfully on port ")
                    .map(|(_, port)| port.to_owned())
            })
            .next()
            .expect("a port");
        let profile = tempfile::tempdir().expect("a folder");
        let driver = Driver {
            process,
            _profile: profile,
        };
        let capabilities: Capabilities = match json!({
            "goog:chromeOptions": {"args": [
                "--headless",
                // The browser ends with its driver, however that ends.
                "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                format!("--user-data-dir={}", driver._profile.path().display()),
            ]},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }) {
            Value::Object(capabilities) => capabilities,
            _ => unreachable!("an object"),
        };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{}", port.trim_end_matches('.')))
            .await
            .expect("a browser");
        let browser = Self {
            client,
            driver,
            root,
        };
        browser
            .devtools(
                "Emulation.setDeviceMetricsOverride",
                json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false}),
            )
            .await;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser
            .devtools("Emulation.setEmulatedMedia", features)
            .await;
        browser
    }

    /// Shows a page, and returns when it is complete.
    pub async fn goto(&self, path: &str) {
        self.client
            .goto(&format!("{}{path}", self.root))
            .await
            .expect("a page");
        self.loaded().await;
    }

    pub async fn loaded(&self) {
        self.until(
            "!document.querySelector('main[aria-busy]') && document.querySelector('main > \
             section, main > .problem')",
        )
        .await;
    }

    /// Returns once an expression is true: the browser looks at every frame.
    pub async fn until(&self, expression: &str) {
        let script = format!(
            "const done = arguments[0], began = Date.now();
             (function look() {{
                 let is; try {{ is = Boolean({expression}); }} catch {{ is = false; }}
                 if (is || Date.now() - began > 20000) done(is); else setTimeout(look, 10);
             }})();"
        );
        let is = self
            .client
            .execute_async(&script, vec![])
            .await
            .expect(expression);
        assert_eq!(
            is,
            json!(true),
            "still waiting: {expression}\n{}",
            self.eval("document.body.innerText.slice(0, 2000)").await
        );
    }

    /// Returns the value of an expression.
    pub async fn eval(&self, expression: &str) -> Value {
        self.client
            .execute(&format!("return ({expression});"), vec![])
            .await
            .expect(expression)
    }

    /// Returns the texts of all elements that match a selector.
    pub async fn texts(&self, selector: &str) -> Vec<String> {
        let texts = self
            .eval(&format!(
                "[...document.querySelectorAll({selector:?})].map((of) => of.innerText.trim())"
            ))
            .await;
        serde_json::from_value(texts).expect("texts")
    }

    pub async fn click(&self, selector: &str) {
        self.client
            .find(Locator::Css(selector))
            .await
            .expect(selector)
            .click()
            .await
            .expect(selector);
    }

    pub async fn keys(&self, selector: &str, keys: &str) {
        self.client
            .find(Locator::Css(selector))
            .await
            .expect(selector)
            .send_keys(keys)
            .await
            .expect(selector);
    }

    /// Returns the query of the URL.
    pub async fn query(&self) -> String {
        self.client
            .current_url()
            .await
            .expect("a URL")
            .query()
            .unwrap_or_default()
            .to_owned()
    }

    /// Returns the place of an element, which it scrolls to.
    pub async fn rectangle(&self, selector: &str) -> Rectangle {
        let found = self
            .eval(&format!(
                "(() => {{ const found = document.querySelector({selector:?}); \
                 found.scrollIntoView({{block: 'center'}}); \
                 const {{x, y, width, height}} = found.getBoundingClientRect(); \
                 return [x, y, width, height]; }})()"
            ))
            .await;
        let [x, y, width, height] = serde_json::from_value(found).expect(selector);
        Rectangle {
            x,
            y,
            width,
            height,
        }
    }

    pub async fn mouse(&self, kind: &str, x: f64, y: f64) {
        let event = json!({"type": kind, "x": x, "y": y});
        self.devtools("Input.dispatchMouseEvent", event).await;
    }

    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.client
            .issue_cmd(Post("goog/cdp/execute", body))
            .await
            .expect(command)
    }

    /// Ends the browser. Fails if the console has an error, or if a request went to another host.
    pub async fn close(self) {
        self.close_with(&[]).await;
    }

    /// Ends the browser as [`Self::close`] does, with `expected` errors in the console.
    pub async fn close_with(self, expected: &[&str]) {
        let log = |kind| self.client.issue_cmd(Post("se/log", json!({"type": kind})));
        let console = log("browser").await.expect("the console");
        for entry in console.as_array().expect("entries") {
            let text = entry["message"].as_str().unwrap_or_default();
            let fine = entry["level"] != "SEVERE"
                || expected.iter().any(|expected| text.contains(expected));
            assert!(fine, "the console has an error: {entry}");
        }
        let mut requests = 0;
        for entry in log("performance")
            .await
            .expect("the requests")
            .as_array()
            .expect("entries")
        {
            let message: Value =
                serde_json::from_str(entry["message"].as_str().expect("text")).expect("JSON");
            if message["message"]["method"] == "Network.requestWillBeSent" {
                let url = message["message"]["params"]["request"]["url"]
                    .as_str()
                    .expect("a URL");
                // The page that a browser shows before the first one is its own.
                let ours = [
                    self.root.as_str(),
                    "blob:",
                    "data:",
                    "chrome:",
                    "chrome-untrusted:",
                ];
                let ours = ours.iter().any(|start| url.starts_with(start));
                assert!(ours, "a request to another host: {url}");
                requests += 1;
            }
        }
        assert!(requests > 5, "the browser logs its requests");
        self.client.close().await.expect("the end");
        drop(self.driver);
    }
}

/// A command of ChromeDriver's own.
#[derive(Debug)]
struct Post(&'static str, Value);

impl WebDriverCompatibleCommand for Post {
    fn endpoint(
        &self,
        base: &url::Url,
        session: Option<&str>,
    ) -> Result<url::Url, url::ParseError> {
        base.join(&format!(
            "session/{}/{}",
            session.unwrap_or_default(),
            self.0
        ))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.1.to_string()))
    }
}

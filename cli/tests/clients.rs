//! The clients of docs/clients.md, run as in an application.

mod common;

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use common::TestDb;
use common::binary::Service;

const PAGE: &str = include_str!("../../docs/clients.md");

/// A language: its interpreter, and an application's use of its client.
struct Language {
    /// The name of the language in the page.
    name: &'static str,
    program: &'static str,
    file: &'static str,
    /// The code before a search starts.
    search: &'static str,
    /// Sends 1,200 retrievals, a third of which find nothing, closes, and prints the outcomes.
    send: &'static str,
    /// Fills a queue of 10 twice, waits until it may continue, and prints the outcomes of the
    /// retrievals.
    overflow: &'static str,
}

const PYTHON: Language = Language {
    name: "python",
    program: "python3",
    file: "client.py",
    search: "def search(query):\n    return [('key.txt', 0.8)]\n",
    send: r#"
log = RetrievalLog(URL)
cycle = {}
cycle["cycle"] = cycle
log.record("semantic", "success", "not JSON", error_context=cycle)
for nth in range(1200):
    log.record("semantic", "no_hit" if nth % 3 == 0 else "success", f"query {nth}", latency_ms=nth / 10)
log.record("semantic", "no such outcome", "rejected")
log.close()
log.record("semantic", "success", "too late")
print(log.accepted, log.rejected, log.dropped)
"#,
    overflow: r#"
log = RetrievalLog(URL, capacity=10)
started = time.monotonic()
for nth in range(500 + 20):
    log.record("semantic", "no_hit", f"query {nth}")
assert time.monotonic() - started < 5
print("queued", flush=True)
input()
log.close(60)
print(log.accepted, log.rejected, log.accepted + log.dropped)
"#,
};

const JAVASCRIPT: Language = Language {
    name: "javascript",
    program: "node",
    file: "client.mjs",
    search: "const search = async (query) => [['key.txt', 0.8]];\n",
    send: r#"
const log = new RetrievalLog({ url: URL_ });
const cycle = {};
cycle.cycle = cycle;
log.record("semantic", "success", "not JSON", { error_context: cycle });
for (let nth = 0; nth < 1200; nth += 1) {
  log.record("semantic", nth % 3 === 0 ? "no_hit" : "success", `query ${nth}`, { latency_ms: nth / 10 });
}
log.record("semantic", "no such outcome", "rejected");
await log.close();
log.record("semantic", "success", "too late");
console.log(log.accepted, log.rejected, log.dropped);
"#,
    overflow: r#"
const log = new RetrievalLog({ url: URL_, capacity: 10 });
for (let nth = 0; nth < 500 + 20; nth += 1) {
  log.record("semantic", "no_hit", `query ${nth}`);
}
console.log("queued");
await new Promise((resolve) => process.stdin.once("data", resolve));
process.stdin.unref?.();
await log.close(60_000);
console.log(log.accepted, log.rejected, log.accepted + log.dropped);
process.exit();
"#,
};

impl Language {
    /// Returns the samples of the page: the class, and its use.
    fn samples(&self) -> [&'static str; 2] {
        let fence = format!("```{}\n", self.name);
        let mut samples = PAGE
            .split(&fence)
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap());
        let both = [
            samples.next().expect("the class"),
            samples.next().expect("its use"),
        ];
        assert!(samples.next().is_none(), "a sample that is not run");
        both
    }

    fn run(&self, db: &TestDb, url: &str, application: &str) -> Child {
        let [class, _] = self.samples();
        let url = match self.name {
            "python" => format!("URL = {url:?}\n"),
            _ => format!("const URL_ = {url:?};\n"),
        };
        self.start(db, &format!("{class}\n{url}{application}"))
    }

    fn start(&self, db: &TestDb, source: &str) -> Child {
        let path = db.folder.path().join(self.file);
        fs::write(&path, source).unwrap();
        let mut command = Command::new(self.program);
        command
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect(self.program)
    }
}

fn output(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn assert_every_retrieval_is_counted(language: &Language) {
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    assert_eq!(
        output(language.run(&db, &service.url, language.send)),
        "1200 2 1\n"
    );
    service.signal("TERM");
    common::eventually("the counts", || db.attempts() == 1200);
    assert_eq!(db.rows(), 400);
    assert_eq!(
        db.integer("SELECT count(DISTINCT query_text) FROM memory_retrieval_failures"),
        400
    );
}

fn assert_outage_drops_overflow_alone(language: &Language) {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};

    let db = TestDb::new();
    // The port refuses connections until the service has it.
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let mut client = language.run(&db, &format!("http://{address}"), language.overflow);
    let mut said = BufReader::new(client.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "queued\n");
    let _service = Service::with(&db, &["--listen", &address]);
    client.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(client.wait().unwrap().success());
    let numbers: Vec<i64> = rest
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    let [accepted, rejected, all] = numbers[..] else {
        panic!("{rest}")
    };
    assert_eq!((rejected, all), (0, 520));
    // The queue holds some, and the background task took some from it meanwhile.
    assert!((10..520).contains(&accepted), "{accepted}");
    common::eventually("the counts", || db.attempts() == accepted);
}

fn assert_sample_runs(language: &Language) {
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    let [class, usage] = language.samples();
    let class = class.replace("http://127.0.0.1:4318", &service.url);
    let close = if language.name == "python" {
        ""
    } else {
        "await log.close();\n"
    };
    assert_eq!(
        output(language.start(&db, &format!("{class}\n{}{usage}{close}", language.search))),
        ""
    );
    common::eventually("the attempt", || db.attempts() == 1);
    assert_eq!(db.rows(), 0);
}

#[test]
#[ignore = "needs python3"]
fn python_client_counts_every_retrieval() {
    assert_every_retrieval_is_counted(&PYTHON);
}

#[test]
#[ignore = "needs python3"]
fn python_client_outlives_an_outage() {
    assert_outage_drops_overflow_alone(&PYTHON);
}

#[test]
#[ignore = "needs python3"]
fn python_sample_runs() {
    assert_sample_runs(&PYTHON);
}

#[test]
#[ignore = "needs node"]
fn javascript_client_counts_every_retrieval() {
    assert_every_retrieval_is_counted(&JAVASCRIPT);
}

#[test]
#[ignore = "needs node"]
fn javascript_client_outlives_an_outage() {
    assert_outage_drops_overflow_alone(&JAVASCRIPT);
}

#[test]
#[ignore = "needs node"]
fn javascript_sample_runs() {
    assert_sample_runs(&JAVASCRIPT);
}

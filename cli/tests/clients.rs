//! The samples of docs/clients.md, run as in an application. `clients/` has the tests of the clients.

mod common;

use std::fs;
use std::process::Command;

use common::TestDb;
use common::binary::Service;

const PAGE: &str = include_str!("../../docs/clients.md");

/// A language: its interpreter, its client, and an application around the samples of the page.
struct Language {
    /// The name of the language in the page.
    name: &'static str,
    program: &'static str,
    /// The file of the application.
    file: &'static str,
    /// The file of the client, and its content.
    client: (&'static str, &'static str),
    /// The code before the samples.
    search: &'static str,
    /// The code after the samples.
    end: &'static str,
}

const PYTHON: Language = Language {
    name: "python",
    program: "python3",
    file: "application.py",
    client: (
        "failure_logger.py",
        include_str!("../../clients/python/failure_logger.py"),
    ),
    search: "def search(query):\n    return [('key.txt', 0.8)]\n",
    // The end of the program sends the queue.
    end: "assert observed_search('key') == hits\n",
};

const JAVASCRIPT: Language = Language {
    name: "javascript",
    program: "node",
    file: "application.mjs",
    client: (
        "failure-logger.mjs",
        include_str!("../../clients/js/failure-logger.mjs"),
    ),
    search: "const search = async (query) => [['key.txt', 0.8]];\n",
    end: "if ((await observedSearch('key'))[0][1] !== hits[0][1]) throw new Error();\n",
};

impl Language {
    /// Returns the samples of the page, as one program.
    fn samples(&self) -> String {
        PAGE.split(&format!("```{}\n", self.name))
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
            .collect()
    }
}

fn assert_samples_run(language: &Language) {
    let db = TestDb::new();
    let service = Service::new(&db, &[]);
    let folder = db.folder.path();
    let (client, source) = language.client;
    fs::write(folder.join(client), source).unwrap();
    let samples = language
        .samples()
        .replace("http://127.0.0.1:4318", &service.url);
    let application = folder.join(language.file);
    fs::write(
        &application,
        format!("{}{samples}{}", language.search, language.end),
    )
    .unwrap();
    let output = Command::new(language.program)
        .arg(application)
        .output()
        .expect(language.program);
    assert!(output.status.success(), "{output:?}");
    assert_eq!((output.stdout, output.stderr), (Vec::new(), Vec::new()));
    // A call of the decorated function, a block, and a retrieval that the application judged.
    common::eventually("the attempts", || db.attempts() == 3);
    assert_eq!(db.rows(), 1);
}

#[test]
#[ignore = "needs python3"]
fn python_samples_run() {
    assert_samples_run(&PYTHON);
}

#[test]
#[ignore = "needs node"]
fn javascript_samples_run() {
    assert_samples_run(&JAVASCRIPT);
}

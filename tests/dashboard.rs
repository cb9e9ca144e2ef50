//! The dashboard, as a person uses it: in a real browser, over real HTTP.
//!
//! `cargo test --test dashboard -- --ignored`, with Debian's packages `chromium` and
//! `chromium-driver`. `AXE` names axe-core's `axe.min.js` (npm), `SCREENSHOTS` a folder for
//! pictures of each page.

#[path = "common/browser.rs"]
mod browser;
mod common;
#[path = "common/searches.rs"]
mod searches;

use std::path::PathBuf;

use browser::{Browser, DESK, PHONE, Screen};
use common::service::Service;
use failure_logger::http::HttpOptions;
use failure_logger::{RetrievalFailureRecord, RetrievalFailureType};
use serde_json::{Value, json};

const PAGES: [&str; 4] = [
    "/?",
    "/?page=failures",
    "/?page=queries",
    "/?page=calibration&strategy=graph",
];

/// A service with a day's searches in it.
async fn searched() -> Service {
    let service = Service::new(HttpOptions::default());
    searches::observe(&service.logger, 6000);
    service.logger.flush().await.expect("flush");
    service
}

async fn log(service: &Service, query: &str) {
    service.logger.log(RetrievalFailureRecord::new(
        RetrievalFailureType::NoHit,
        "semantic",
        query,
    ));
    service.logger.flush().await.expect("flush");
}

/// Returns the response of a route to a request that the browser does not send.
async fn ask(service: &Service, path: &str) -> Value {
    let url = service.url(path);
    let (send, answer) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let answer = actix_web::rt::System::new().block_on(async {
            let client = awc::Client::builder().disable_timeout().finish();
            client
                .get(url)
                .send()
                .await
                .expect("an answer")
                .json::<Value>()
                .limit(64 << 20)
                .await
                .expect("JSON")
        });
        let _ = send.send(answer);
    });
    answer.await.expect("an answer")
}

fn whole(number: &Value) -> String {
    let digits = number.as_u64().expect("a number").to_string();
    let mut text = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn the_overview_shows_what_the_api_says() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/").await;
    let summary = ask(&service, "/v1/summary").await;
    let total = &summary["total"];
    let shown = async |name: &str| {
        let mut texts = browser.texts(&format!("[data-value={name}]")).await;
        texts.pop().expect(name)
    };
    assert_eq!(shown("attempts").await, whole(&total["attempts"]));
    assert_eq!(shown("failures").await, whole(&total["failures"]));
    let rate = 100.0 * total["failure_rate"].as_f64().unwrap();
    assert_eq!(shown("rate").await, format!("{rate:.1} %"));
    let types: Vec<String> = total["types"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| whole(&of["failures"]))
        .collect();
    assert_eq!(browser.texts("table.types td:nth-child(2)").await, types);
    // The interval of Wilson contains the rate, and is narrow for thousands of attempts.
    let interval = browser.texts(".figures p").await.remove(1);
    let ends: Vec<f64> = interval
        .split([' ', ','])
        .filter_map(|word| word.parse().ok())
        .collect();
    let [low, high, 95.0] = ends[..] else {
        panic!("{interval}");
    };
    assert!(low < rate && rate < high && high - low < 5.0, "{interval}");
    // The period before is named once.
    let compared = browser.texts(".compared").await.remove(0);
    let before = 100.0 * summary["previous"]["failure_rate"].as_f64().unwrap();
    assert!(
        compared.contains("against the 24 hours before")
            && compared.contains(&format!("{before:.1} %")),
        "{compared}"
    );
    let text = browser.eval("document.body.innerText").await;
    let named = text.as_str().unwrap().matches("hours before").count();
    assert_eq!(named, 1);
    let strategies: Vec<&str> = summary["strategies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| of["retrieval_strategy"].as_str().unwrap())
        .collect();
    assert_eq!(
        browser
            .texts("main > section:last-child .scroll td:first-child")
            .await,
        strategies
    );
    // The chart has been drawn, and the table beside it has the same numbers.
    assert_eq!(
        browser
            .eval("document.querySelectorAll('.u-over').length")
            .await,
        5
    );
    browser.click(".numbers summary").await;
    let points = ask(&service, "/v1/timeseries?max_steps=140").await;
    let failing = points["points"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|point| point["attempts"] != 0)
        .count();
    assert_eq!(browser.texts(".numbers tbody tr").await.len(), failing);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn overview_after_a_deletion_says_when_the_log_begins() {
    let service = searched().await;
    service.db.execute(
        "DELETE FROM memory_retrieval_failures WHERE created_at < (unixepoch('subsec') - 43200) * 1000",
    );
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/").await;
    let hint = browser
        .eval("document.querySelector('[data-hint=deleted]').innerText")
        .await;
    let shown = browser
        .eval("document.querySelector('[data-hint=deleted] time').innerText")
        .await;
    assert_eq!(
        hint,
        format!(
            "The log begins {}: older failures were deleted.",
            shown.as_str().unwrap()
        )
    );
    assert!(!shown.as_str().unwrap().is_empty());
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn a_filter_survives_a_reload_through_the_url() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?page=failures").await;
    browser
        .eval(
            "(() => { const type = document.querySelector('select[name=type]'); type.value = \
        'timeout'; type.dispatchEvent(new Event('change')); })()",
        )
        .await;
    browser
        .until("document.querySelector('#strategy option[value=graph]')")
        .await;
    browser
        .eval(
            "(() => { const list = document.getElementById('strategy'); list.value = 'graph'; \
        list.dispatchEvent(new Event('change')); })()",
        )
        .await;
    browser
        .until(
            "location.search.includes('strategy=graph') && \
        location.search.includes('type=timeout')",
        )
        .await;
    let only = "(() => { const rows = [...document.querySelectorAll('main tbody tr')]; return \
        rows.length > 0 && rows.every((row) => row.innerText.includes('timeout') && row.innerText.includes('graph')); })()";
    browser.until(only).await;
    let (rows, url) = (browser.texts("main tbody tr").await, browser.query().await);
    browser.client.refresh().await.expect("a reload");
    browser.loaded().await;
    browser.until(only).await;
    assert_eq!(
        (browser.texts("main tbody tr").await, browser.query().await),
        (rows, url)
    );
    assert_eq!(
        browser
            .eval("document.querySelector('select[name=type]').value")
            .await,
        "timeout"
    );
    assert_eq!(
        browser
            .eval("document.getElementById('strategy').value")
            .await,
        "graph"
    );
    // And the way back leads to all of them.
    browser.client.back().await.expect("back");
    browser.until("!location.search.includes('strategy')").await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn pages_lead_to_older_failures_and_back() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?page=failures").await;
    let first = browser.texts("main tbody tr").await;
    browser.click("a[rel=next]").await;
    browser.until("document.querySelector('a[rel=prev]')").await;
    let second = browser.texts("main tbody tr").await;
    assert!(first.len() == 50 && second.len() == 50 && first != second);
    browser.client.refresh().await.expect("a reload");
    browser.loaded().await;
    assert_eq!(
        browser.texts("main tbody tr").await,
        second,
        "the page is in the URL"
    );
    browser.click("a[rel=prev]").await;
    browser.until("location.search.includes('back=1')").await;
    browser.loaded().await;
    assert_eq!(browser.texts("main tbody tr").await, first);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn failure_opens_in_full_with_its_history_and_conversation() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?page=failures&type=error").await;
    browser.click("main td a.query").await;
    browser
        .until("document.querySelectorAll('dialog.detail tr.current').length === 2")
        .await;
    let failure = browser
        .eval("document.querySelector('dialog.detail').dataset.event")
        .await;
    let failure = ask(
        &service,
        &format!("/v1/failures/{}", failure.as_str().unwrap()),
    )
    .await;
    assert_eq!(
        browser.texts("dialog.detail .query-title").await,
        [failure["query_text"].as_str().unwrap()],
        "the query comes first"
    );
    let facts = browser.texts("dialog.detail dd").await;
    for field in [
        "error_context",
        "event_id",
        "conversation_id",
        "retrieval_strategy",
    ] {
        assert!(
            facts.contains(&failure[field].as_str().unwrap().to_owned()),
            "{field} is missing in {facts:?}"
        );
    }
    // The conversation, in the order of its turns.
    let turns = browser
        .texts("dialog.detail .content > div:last-child tbody td:first-child")
        .await;
    let turns: Vec<u64> = turns.iter().map(|turn| turn.parse().unwrap()).collect();
    assert!(turns.is_sorted() && !turns.is_empty(), "{turns:?}");
    let page = ask(
        &service,
        &format!(
            "/v1/failures?conversation_id={}&limit=1000",
            failure["conversation_id"].as_str().unwrap()
        ),
    )
    .await;
    assert_eq!(turns.len(), page["data"].as_array().unwrap().len());
    browser.client.refresh().await.expect("a reload");
    browser
        .until("document.querySelector('dialog.detail[open] dd')")
        .await;
    browser.keys("dialog.detail .close", "\u{e00c}").await;
    browser
        .until("!document.querySelector('dialog[open]') && !location.search.includes('failure=')")
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn failures_have_a_total_errors_in_their_rows_and_an_order() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?page=failures&type=error").await;
    let summary = ask(&service, "/v1/summary").await;
    let errors = summary["total"]["types"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["failure_type"] == "error")
        .unwrap();
    assert_eq!(
        browser.texts("[data-value=total]").await,
        [whole(&errors["failures"])]
    );
    let texts = browser.texts("main td .error-text").await;
    assert!(
        texts
            .iter()
            .all(|text| text == "the index refuses the connection")
    );
    let latencies = async || -> Vec<f64> {
        let cells = browser.texts("main tbody td:nth-child(5)").await;
        let number = |cell: &String| cell.trim_end_matches(" ms").parse().expect(cell);
        cells.iter().map(number).collect()
    };
    browser.click("a[rel=sort-latency]").await;
    browser
        .until("document.querySelector('th[aria-sort=descending] a').rel === 'sort-latency'")
        .await;
    assert!(latencies().await.is_sorted_by(|one, other| one >= other));
    browser.click("a[rel=sort-latency]").await;
    browser
        .until("document.querySelector('th[aria-sort=ascending] a')?.rel === 'sort-latency'")
        .await;
    assert!(latencies().await.is_sorted());
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn detail_leads_to_the_next_failure_and_resolves_its_group() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?page=failures").await;
    let shows = async |row: usize| {
        browser
            .until(&format!(
                "document.querySelector('dialog.detail').dataset.event === \
                 document.querySelectorAll('main > section tbody tr[data-event]')[{row}].dataset.event && \
                 document.querySelector('dialog.detail .query-title')"
            ))
            .await;
    };
    browser.click("main td a.query").await;
    shows(0).await;
    browser.click("dialog button[name=next]").await;
    shows(1).await;
    browser.keys("dialog button[name=next]", "j").await;
    shows(2).await;
    browser.keys("dialog button[name=previous]", "k").await;
    shows(1).await;
    // The detail leads on after a reload, too.
    browser.client.refresh().await.expect("a reload");
    browser.loaded().await;
    browser.click("dialog button[name=next]").await;
    shows(2).await;
    browser.click("dialog button[data-status=resolved]").await;
    browser
        .until("document.querySelector('dialog button[name=undo]')")
        .await;
    let resolved = ask(&service, "/v1/queries?status=resolved").await;
    assert_eq!(resolved["total"], 1);
    browser.click("dialog button[name=undo]").await;
    browser
        .until("document.querySelector('dialog').innerText.includes('is open')")
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn the_live_tail_shows_what_is_posted_and_a_pause_holds_it_back() {
    let service = Service::new(HttpOptions::default());
    log(&service, "who came before?").await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?page=failures").await;
    browser.keys("body", "t").await;
    browser
        .until(
            "document.querySelector('.progress').innerText.includes('connected, waiting for new \
             failures')",
        )
        .await;
    // The newest failures stay in sight.
    browser
        .until("document.querySelector('table.live tbody').innerText.includes('who came before?')")
        .await;
    let post = async |query: &str| {
        let record = json!({"failure_type": "no_hit", "retrieval_strategy": "semantic", "query_text": query});
        let url = service.url("/v1/failures");
        let script = "const [url, body, done] = arguments;
             fetch(url, {method: 'POST', headers: {'content-type': 'application/json'}, body}).then((sent) => done(sent.status));";
        let sent = browser
            .client
            .execute_async(script, vec![json!(url), json!(record.to_string())])
            .await;
        assert_eq!(sent.expect("posted"), 202);
    };
    post("who comes first?").await;
    browser
        .until("document.querySelector('table.live tbody').innerText.includes('who comes first?')")
        .await;
    browser.click("button[name=pause]").await;
    post("who has to wait?").await;
    browser
        .until("document.querySelector('.progress').innerText.includes('Paused: 1 new')")
        .await;
    assert_eq!(browser.texts("table.live tbody tr").await.len(), 2);
    browser.click("button[name=pause]").await;
    browser
        .until(
            "document.querySelector('table.live tbody tr').innerText.includes('who has to wait?')",
        )
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn hostile_queries_are_shown_as_text_and_change_nothing() {
    let service = Service::new(HttpOptions::default());
    let crabs = "\u{1f980}".repeat(512);
    let queries = [
        "<script>window.hacked = 1</script>",
        "<img src=x onerror=\"window.hacked = 1\">",
        "javascript:window.hacked=1",
        "\u{202e}gnp.exe",
        "\"'><svg onload=window.hacked=1>",
        "{{constructor.constructor('window.hacked=1')()}}",
        &crabs,
    ];
    for query in queries {
        service.logger.strategy(query).conversation(query).record(
            failure_logger::Outcome::failure(
                RetrievalFailureType::Error,
                query,
                std::time::Duration::ZERO,
            )
            .error(&query),
        );
    }
    service.logger.flush().await.expect("flush");
    let browser = Browser::open(service.url(""), PHONE).await;
    for page in PAGES.into_iter().chain(["/?page=calibration", "/?page=failures&strategy=%3Cscript%3Ewindow.hacked=1%3C/script%3E&text=%3Cimg%20src%3Dx%20onerror%3Dwindow.hacked=1%3E"]) {
        browser.goto(page).await;
        assert_eq!(browser.eval("window.hacked === undefined").await, true, "{page}");
        assert_eq!(browser.eval("document.querySelectorAll('main script, main img, main [onload], \
            main [onerror], a[href^=javascript]').length").await, 0);
        assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth").await, true, "{page} is too wide");
    }
    browser.goto("/?page=failures").await;
    let shown = browser.texts("main td a.query").await.join("\n");
    assert!(
        shown.contains(queries[0]) && shown.contains(queries[2]),
        "{shown}"
    );
    assert!(
        shown.contains("⟨U+202E⟩gnp.exe") && !shown.contains('\u{202e}'),
        "{shown}"
    );
    for nth in 0..queries.len() {
        browser
            .eval(&format!(
                "document.querySelectorAll('main td a.query')[{nth}].click()"
            ))
            .await;
        browser
            .until("document.querySelectorAll('dialog.detail tr.current').length === 2")
            .await;
        assert_eq!(
            browser
                .eval(
                    "window.hacked === undefined && document.querySelectorAll('dialog script, \
                     dialog img').length === 0"
                )
                .await,
            true
        );
        browser
            .eval("document.querySelector('dialog.detail').close()")
            .await;
        browser.until("!location.search.includes('failure=')").await;
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn cursor_that_is_refused_leads_to_the_newest_page() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?page=failures").await;
    let newest = browser.texts("main tbody tr").await;
    browser.goto("/?page=failures&cursor=nonsense").await;
    browser
        .until(
            "!location.search.includes('cursor') && document.querySelectorAll('main tbody \
            tr').length === 50",
        )
        .await;
    assert_eq!(browser.texts("main tbody tr").await, newest);
    browser.close_with(&["400"]).await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn inbox_resolves_ignores_takes_back_and_shows_reopened_first() {
    let service = Service::new(HttpOptions::default());
    for _ in 0..3 {
        log(&service, "who are you?").await;
    }
    log(&service, "where is the key?").await;
    log(&service, "where is the key").await;
    log(&service, "when does it open?").await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?page=queries").await;
    let counts = async || browser.texts(".tabs [data-count]").await;
    let queries = async || browser.texts("main td a.query").await;
    let all = ["who are you?", "where is the key", "when does it open?"];
    assert_eq!(counts().await, ["3", "0", "0", "3"]);
    assert_eq!(queries().await, all);
    let shows = async |open: u32, resolved: u32, ignored: u32| {
        browser
            .until(&format!(
                "[...document.querySelectorAll('.tabs [data-count]')].map((of) => \
                 of.innerText).slice(0, 3).join() === '{open},{resolved},{ignored}'"
            ))
            .await;
    };
    browser
        .click("tbody tr:nth-child(2) button[data-status=resolved]")
        .await;
    shows(2, 1, 0).await;
    assert_eq!(queries().await, [all[0], all[2]]);
    // A failure reopens the group. It is first then, and says so.
    log(&service, "where is the key?").await;
    browser.keys("body", "r").await;
    browser
        .until("document.querySelector('tbody tr .reopened-mark')")
        .await;
    assert_eq!(queries().await[0], "where is the key?");
    assert_eq!(browser.texts(".count.reopened").await, ["1 reopened"]);
    // By keys: to the second group, ignore it, and take it back.
    browser.keys("body", "jj").await;
    browser
        .until("document.activeElement.innerText === 'who are you?'")
        .await;
    browser.keys(":focus", "i").await;
    shows(2, 0, 1).await;
    assert_eq!(
        browser.eval("document.activeElement.innerText").await,
        "when does it open?",
        "the next group has the focus"
    );
    browser.keys(":focus", "z").await;
    shows(3, 0, 0).await;
    assert_eq!(
        browser.eval("document.activeElement.innerText").await,
        "who are you?"
    );
    // Two at once, and one step back.
    browser.keys(":focus", "xjx").await;
    browser
        .until("document.querySelector('.bulk strong').innerText === '2 chosen'")
        .await;
    browser.keys(":focus", "e").await;
    shows(1, 2, 0).await;
    browser.click("button[name=undo]").await;
    shows(3, 0, 0).await;
    browser.click(".tabs a:nth-child(2)").await;
    browser
        .until("document.body.innerText.includes('No group of queries is resolved')")
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn group_has_a_page_of_its_own_and_leads_to_its_failures() {
    let service = searched().await;
    let ranking = ask(&service, "/v1/queries?since=24h&limit=1").await;
    let group = &ranking["data"][0];
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?page=queries").await;
    browser.click("tbody tr:nth-child(1) a.query").await;
    browser
        .until("location.search.includes('group=') && document.querySelector('.facts')")
        .await;
    browser.client.refresh().await.expect("a reload");
    browser.loaded().await;
    assert_eq!(
        browser.texts(".query-title").await,
        [group["example"].as_str().unwrap()]
    );
    let facts = browser.texts(".facts > div").await;
    assert_eq!(facts[0], format!("failures\n{}", whole(&group["count"])));
    // The failures of the page are those that the ranking counts.
    let texts = browser
        .texts("[aria-label='Texts of the group'] td.number")
        .await;
    let found: u64 = texts
        .iter()
        .map(|count| count.parse::<u64>().unwrap())
        .sum();
    assert_eq!(found, group["count"].as_u64().unwrap());
    let strategies = browser
        .texts("[aria-label='Failures by strategy'] td:first-child")
        .await;
    let expected: Vec<&str> = group["strategies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["retrieval_strategy"].as_str().unwrap())
        .collect();
    assert_eq!(strategies, expected);
    browser.keys("body", "e").await;
    browser
        .until("document.querySelector('.actions .name').innerText === 'resolved'")
        .await;
    browser.click("a.button[href*='page=failures']").await;
    let rows = "document.querySelectorAll('main tbody tr').length";
    browser
        .until(&format!(
            "document.querySelector('.chip code') && {rows} === Math.min(50, {})",
            group["count"]
        ))
        .await;
    browser.click(".chip button").await;
    browser
        .until(&format!(
            "{rows} === 50 && document.activeElement.name === 'text'"
        ))
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn inbox_is_searched_sorted_and_says_how_many_more_there_are() {
    let service = Service::new(HttpOptions::default());
    let cities = ["alpha", "beta", "gamma", "delta", "epsilon"];
    for nth in 0..112 {
        let (one, other) = (cities[nth % 5], cities[nth / 5 % 5]);
        let query = format!("{one}{nth} lies beside {other}{nth}");
        // Each has a millisecond of its own, so that the order is certain.
        let ago = std::time::Duration::from_millis(200 - nth as u64);
        service.logger.log_at(
            RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "semantic", &query),
            std::time::SystemTime::now() - ago,
        );
    }
    service.logger.flush().await.expect("flush");
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?page=queries").await;
    assert_eq!(browser.texts("main tbody tr").await.len(), 100);
    assert_eq!(browser.texts(".more").await, ["and 12 more"]);
    browser
        .eval(
            "(() => { const sort = document.querySelector('select[name=sort]'); sort.value = \
        'first_seen'; sort.dispatchEvent(new Event('change')); })()",
        )
        .await;
    browser
        .until("document.querySelector('tbody a.query').innerText.startsWith('beta111 ')")
        .await;
    browser.keys("body", "/").await;
    browser.keys("input[name=text]", "BETA111").await;
    browser
        .until("document.querySelectorAll('main tbody tr').length === 1")
        .await;
    assert!(browser.query().await.contains("text=BETA111"));
    assert_eq!(browser.texts(".tabs [data-count=open]").await, ["1"]);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn dragging_the_threshold_changes_the_rate_to_what_the_api_says() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?page=calibration&strategy=graph").await;
    browser.until("document.querySelector('.rate')").await;
    let rate = async || {
        let shown = browser.eval("[document.querySelector('.result \
            [data-threshold]').dataset.threshold, document.querySelector('.rate').dataset.rate].map(Number)").await;
        (shown[0].as_f64().unwrap(), shown[1].as_f64().unwrap())
    };
    let (configured, before) = rate().await;
    assert!(
        (configured - 0.5).abs() < 1e-6,
        "it begins with the threshold that is configured"
    );
    // As a hand does it: down on the grip, a third of the chart to the right, and up.
    let grip = browser.eval("(() => { const at = document.querySelector('[role=slider] \
        .grip').getBoundingClientRect(); return [at.x + at.width / 2, at.y + at.height / 2, document.querySelector('.u-over').clientWidth]; })()").await;
    let (x, y, width) = (
        grip[0].as_f64().unwrap(),
        grip[1].as_f64().unwrap(),
        grip[2].as_f64().unwrap(),
    );
    let mouse = async |kind: &str, x: f64| {
        browser
            .devtools(
                "Input.dispatchMouseEvent",
                json!({"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}),
            )
            .await;
    };
    mouse("mousePressed", x).await;
    for step in 1..=10 {
        mouse("mouseMoved", x + width / 30.0 * f64::from(step)).await;
        if step == 5 {
            // The hand rests, until all that follows from where it is has been done.
            browser
                .until("location.search.includes('threshold=')")
                .await;
            browser.loaded().await;
        }
    }
    mouse("mouseReleased", x + width / 3.0).await;
    browser
        .until(
            "Number(document.querySelector('.result [data-threshold]').dataset.threshold) > \
        0.75 && new URLSearchParams(location.search).get('threshold') > 0.75",
        )
        .await;
    let (threshold, shown) = rate().await;
    let says = ask(
        &service,
        &format!("/v1/calibration?retrieval_strategy=graph&since=24h&threshold={threshold}"),
    )
    .await;
    let says = says["failure_rate_at_threshold"].as_f64().unwrap();
    // The last day has moved on by some seconds since.
    assert!(
        (shown - says).abs() < 0.01 && shown > before + 0.1,
        "{before}, {shown} and {says}"
    );
    browser.client.refresh().await.expect("a reload");
    browser.loaded().await;
    browser.until("document.querySelector('.rate')").await;
    assert!(
        (rate().await.0 - threshold).abs() < 1e-3,
        "it is in the URL"
    );
    // And without a hand.
    browser.keys("[role=slider]", "\u{e011}").await;
    browser
        .until(&format!(
            "Number(document.querySelector('.result \
            [data-threshold]').dataset.threshold) < {configured}"
        ))
        .await;
    assert!(rate().await.1 < before);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn calibration_invents_no_threshold_and_tries_the_typed_one() {
    let service = Service::new(HttpOptions::default());
    let monitor = service.logger.strategy("semantic");
    for score in 1..=50 {
        let outcome = failure_logger::Outcome::success(std::time::Duration::ZERO)
            .top_score(score as f32 / 100.0);
        monitor.record(outcome);
    }
    service.logger.flush().await.expect("flush");
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?page=calibration").await;
    browser
        .until("document.querySelector('.result').innerText.includes('No threshold is configured')")
        .await;
    assert_eq!(
        browser
            .eval("document.querySelector('[role=slider]').hidden")
            .await,
        true
    );
    assert!(!browser.query().await.contains("threshold"));
    browser.keys("input[name=threshold]", "0.255\n").await;
    browser
        .until("document.querySelector('[data-value=newly-failing]').innerText === '25'")
        .await;
    assert_eq!(
        browser
            .eval("document.querySelector('[role=slider]').hidden")
            .await,
        false
    );
    let lines = browser.texts(".settings code").await;
    assert_eq!(
        lines[0],
        "logger.strategy(\"semantic\").confidence_threshold(0.255)"
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn lower_threshold_shows_the_failures_that_would_succeed() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser
        .goto("/?page=calibration&strategy=graph&threshold=0.4")
        .await;
    browser
        .until("document.querySelector('[data-value=newly-passing]')")
        .await;
    let shown = browser.texts("[data-value=newly-passing]").await.remove(0);
    let says = ask(
        &service,
        "/v1/calibration?retrieval_strategy=graph&since=24h&threshold=0.4",
    )
    .await;
    let changes = &says["changes_at_threshold"];
    assert_eq!(shown, whole(&changes["newly_passing"]));
    assert_eq!(changes["newly_failing"], 0);
    browser.click("button[name=see]").await;
    let scores = "[aria-label='Failures that would succeed'] td.number";
    browser
        .until(&format!("document.querySelector(\"{scores}\")"))
        .await;
    for score in browser.texts(scores).await {
        let score: f64 = score.parse().expect("a score");
        assert!((0.4..0.5).contains(&score), "{score}");
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn dragging_over_the_chart_looks_closer() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/").await;
    let over = browser.eval("(() => { const at = \
        document.querySelector('.u-over').getBoundingClientRect(); return [at.x, at.y, at.width, at.height]; })()").await;
    let at = |nth: usize| over[nth].as_f64().unwrap();
    for (kind, x) in [
        ("mouseMoved", 0.5),
        ("mousePressed", 0.5),
        ("mouseMoved", 0.6),
        ("mouseMoved", 0.75),
        ("mouseReleased", 0.75),
    ] {
        let place = json!({"type": kind, "x": at(0) + at(2) * x, "y": at(1) + at(3) / 2.0, "button": "left", "buttons": 1, "clickCount": 1});
        browser.devtools("Input.dispatchMouseEvent", place).await;
    }
    browser
        .until(
            "new URLSearchParams(location.search).has('from') && new \
            URLSearchParams(location.search).has('to')",
        )
        .await;
    browser.loaded().await;
    let hours = browser
        .eval(
            "(() => { const url = new URLSearchParams(location.search); return \
        (Date.parse(url.get('to')) - Date.parse(url.get('from'))) / 3.6e6; })()",
        )
        .await;
    assert!(
        (5.0..8.0).contains(&hours.as_f64().unwrap()),
        "a quarter of a day, not {hours} hours"
    );
    browser.keys("body", "0").await;
    browser
        .until("location.search === '' || location.search === '?'")
        .await;
    // A range with a beginning and an end comes back, too.
    let day = "?from=2026-01-01T00:00:00.000Z&to=2099-01-01T00:00:00.000Z";
    browser.goto(&format!("/{day}")).await;
    let over = browser.rectangle(".u-over").await;
    for (kind, x) in [
        ("mouseMoved", 0.9),
        ("mousePressed", 0.9),
        ("mouseMoved", 0.97),
        ("mouseReleased", 0.97),
    ] {
        let place = json!({"type": kind, "x": over.x + over.width * x, "y": over.y + over.height / 2.0, "button": "left", "buttons": 1, "clickCount": 1});
        browser.devtools("Input.dispatchMouseEvent", place).await;
    }
    browser.until("location.search.includes('whole=')").await;
    browser.loaded().await;
    browser.click("#zoom-out").await;
    browser
        .until(&format!("decodeURIComponent(location.search) === '{day}'"))
        .await;
    browser.click("#since").await;
    browser
        .eval(
            "(() => { const since = document.getElementById('since'); since.value = '1h'; \
        since.dispatchEvent(new Event('change')); })()",
        )
        .await;
    browser.until("location.search === '?since=1h'").await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn the_token_is_kept_in_memory_or_for_the_tab_on_request() {
    let token = "a-token-for-those-who-read";
    let service = Service::new(HttpOptions::default().token(
        "reader",
        token.parse().unwrap(),
        [failure_logger::http::Scope::Read],
    ));
    searches::observe(&service.logger, 500);
    service.logger.flush().await.expect("flush");
    let browser = Browser::open(service.url(""), DESK).await;
    browser
        .client
        .goto(&service.url("/"))
        .await
        .expect("a page");
    for (given, next) in [("a-token-that-is-wrong", "was rejected"), (token, "")] {
        browser
            .until("document.querySelector('dialog[open] input[name=token]')")
            .await;
        browser.keys("input[name=token]", given).await;
        browser.click("dialog button[value=yes]").await;
        if !next.is_empty() {
            browser
                .until(&format!(
                    "document.querySelector('dialog[open]')?.innerText.includes({next:?})"
                ))
                .await;
        }
    }
    browser
        .until("document.querySelector('[data-value=rate]')")
        .await;
    for page in ["failures", "queries", "calibration"] {
        browser
            .eval(&format!(
                "document.querySelector('nav a[href*={page}]').click()"
            ))
            .await;
        browser
            .until(
                "!document.querySelector('main[aria-busy]') && document.querySelector('main \
                table, main .chart')",
            )
            .await;
    }
    let kept = browser
        .eval(
            "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, \
            location.href, history.state])",
        )
        .await;
    assert!(!kept.as_str().unwrap().contains("a-token"), "{kept}");
    browser.client.refresh().await.expect("a reload");
    browser
        .until("document.querySelector('dialog[open] input[name=token]')")
        .await;
    // On request it lasts as long as the tab.
    browser.keys("input[name=token]", token).await;
    browser.click("input[name=keep]").await;
    browser.click("dialog button[value=yes]").await;
    browser
        .until("document.querySelector('main[aria-busy]') === null && !document.querySelector('dialog')")
        .await;
    browser.client.refresh().await.expect("a reload");
    browser.loaded().await;
    assert_eq!(
        browser
            .eval("document.querySelector('dialog') === null")
            .await,
        true
    );
    assert_eq!(
        browser.eval("JSON.stringify({...localStorage})").await,
        "{}"
    );
    browser.close_with(&["401"]).await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn keys_lead_everywhere_and_do_not_disturb_who_types() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/").await;
    browser.keys("body", "?").await;
    browser
        .until("document.querySelector('dialog[open]').innerText.includes('search the failures')")
        .await;
    browser.keys("dialog[open] button", "\u{e00c}").await;
    browser
        .until("!document.querySelector('dialog[open]')")
        .await;
    browser.keys("body", "/").await;
    browser
        .until(
            "document.activeElement.name === 'text' && location.search.includes('page=failures')",
        )
        .await;
    browser.keys("input[name=text]", "tr?").await;
    browser
        .until("location.search.includes('text=tr%3F')")
        .await;
    assert!(
        !browser.query().await.contains("live"),
        "letters in a field are letters"
    );
    browser.keys("input[name=text]", "\u{e00c}").await;
    browser.keys("body", "3").await;
    browser
        .until("location.search.includes('page=queries') && document.querySelector('main tbody')")
        .await;
    let before = browser
        .eval("performance.getEntriesByType('resource').length")
        .await;
    browser.keys("body", "r").await;
    browser
        .until(&format!(
            "performance.getEntriesByType('resource').length > {before}"
        ))
        .await;
    browser.keys("body", "c").await;
    browser
        .until("document.documentElement.dataset.theme === 'light'")
        .await;
    browser.client.refresh().await.expect("a reload");
    browser.loaded().await;
    assert_eq!(
        browser.eval("document.documentElement.dataset.theme").await,
        "light",
        "the choice is kept"
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn nothing_is_asked_for_while_nobody_looks() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    // The test decides when the ten seconds are over.
    let clock = "window.setInterval = (work, ms) => { if (ms === 10000) window.tick = work; return 0; };
         window.asked = 0; const ask = window.fetch; window.fetch = (...all) => { window.asked++; return ask(...all); };";
    browser
        .devtools(
            "Page.addScriptToEvaluateOnNewDocument",
            json!({"source": clock}),
        )
        .await;
    browser.goto("/").await;
    let asked = browser.eval("window.asked").await;
    browser
        .eval(
            "(() => { Object.defineProperty(document, 'hidden', {value: true, configurable: \
        true}); window.tick(); })()",
        )
        .await;
    assert_eq!(browser.eval("window.asked").await, asked);
    browser
        .eval(
            "(() => { Object.defineProperty(document, 'hidden', {value: false}); \
        window.tick(); })()",
        )
        .await;
    browser
        .until(&format!("window.asked === {asked} + 4"))
        .await;
    browser.loaded().await;
    browser.close().await;
}

/// From the overview to a resolved group, without a pointer.
#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn keyboard_alone_leads_from_a_page_to_a_resolved_group() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/").await;
    let (tab, enter) = ("\u{e004}", "\u{e007}");
    // The first stop of the focus skips the header.
    browser.keys("body", tab).await;
    assert_eq!(
        browser.eval("document.activeElement.innerText").await,
        "Skip to the content"
    );
    for _ in 0..4 {
        browser.keys(":focus", tab).await;
    }
    assert_eq!(
        browser.eval("document.activeElement.innerText").await,
        "Queries"
    );
    browser.keys(":focus", enter).await;
    browser
        .until("document.querySelectorAll('main tbody tr').length > 1")
        .await;
    browser.keys("body", "jj").await;
    let query = browser.eval("document.activeElement.innerText").await;
    browser.keys(":focus", enter).await;
    browser
        .until("document.querySelector('.query-title')")
        .await;
    assert_eq!(
        browser.texts(".query-title").await,
        [query.as_str().unwrap()]
    );
    browser.keys("body", "e").await;
    browser
        .until("document.querySelector('.actions .name').innerText === 'resolved'")
        .await;
    browser.keys("body", "u").await;
    browser
        .until("document.querySelector('[data-count=resolved]')?.innerText === '1'")
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn empty_page_or_absent_service_shows_what_to_do() {
    let service = Service::new(HttpOptions::default());
    let browser = Browser::open(service.url(""), DESK).await;
    for (page, said) in [
        ("/", "curl http://127.0.0.1"),
        ("/?page=failures", "No failures in this range"),
        ("/?page=failures&type=error", "Clear filters"),
        ("/?page=queries", "No open group of failing queries"),
        ("/?page=queries&status=all", "No query failed in this range"),
        ("/?page=calibration", "No strategy was used in this range"),
        (
            "/?page=failures&failure=01890000-0000-7000-8000-000000000001",
            "no failure has this event_id",
        ),
    ] {
        browser
            .client
            .goto(&service.url(page))
            .await
            .expect("a page");
        browser
            .until(&format!("document.body.innerText.includes({said:?})"))
            .await;
    }
    // A range that the service refuses: the reason is its own.
    browser
        .goto("/?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z")
        .await;
    browser
        .until("document.querySelector('.problem').innerText.includes('a moment after `from`')")
        .await;
    browser.goto("/").await;
    service.stop().await;
    browser.click("#refresh").await;
    browser
        .until(
            "document.querySelector('.problem').innerText.includes('The service does not respond')",
        )
        .await;
    assert_eq!(browser.texts(".problem button").await, ["Retry"]);
    browser
        .close_with(&["404", "400", "ERR_CONNECTION_REFUSED"])
        .await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn it_is_as_usable_in_the_scope_of_another_application() {
    use actix_web::{App, HttpServer, web};
    let db = common::TestDb::new();
    let logger = common::spawn(db.config());
    searches::observe(&logger, 500);
    logger.flush().await.expect("flush");
    let api = failure_logger::http::configure(logger.clone(), HttpOptions::default());
    let (send, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        actix_web::rt::System::new().block_on(async move {
            let app = move || App::new().service(web::scope("/deep/log").configure(api.clone()));
            let server = HttpServer::new(app)
                .workers(1)
                .bind(("127.0.0.1", 0))
                .expect("a port");
            send.send(server.addrs()[0]).expect("the test waits");
            server.run().await.expect("a server");
        });
    });
    let address = started.recv().expect("a server");
    let browser = Browser::open(format!("http://{address}"), DESK).await;
    // Without the slash at its end.
    browser.goto("/deep/log").await;
    browser
        .until("location.pathname === '/deep/log/' && document.querySelector('[data-value=rate]')")
        .await;
    for page in PAGES {
        browser.goto(&format!("/deep/log{page}")).await;
        browser
            .until(
                "document.querySelector('main table, main .chart') && \
            !document.querySelector('.problem')",
            )
            .await;
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn a_long_search_shows_how_far_it_is_and_can_be_stopped() {
    let service = Service::new(HttpOptions::default());
    service.db.execute(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 400000)
         INSERT INTO memory_retrieval_failures (event_id, turn_index, failure_type, retrieval_strategy, query_text, query_len,
             result_count, latency_ms, created_at)
         SELECT randomblob(16), n, 'no_hit', 'semantic', CASE n WHEN 399000 THEN 'a needle' ELSE 'hay' END, 3, 0, 0,
             unixepoch('subsec') * 1000 - 400000 + n FROM n",
    );
    let browser = Browser::open(service.url(""), DESK).await;
    let clock =
        "window.setInterval = (work, ms) => { if (ms === 10000) window.tick = work; return 0; };";
    browser
        .devtools(
            "Page.addScriptToEvaluateOnNewDocument",
            json!({"source": clock}),
        )
        .await;
    browser
        .client
        .goto(&service.url("/?page=failures&text=needle"))
        .await
        .expect("a page");
    // The page shows found failures before the search ends.
    browser
        .until("document.querySelector('.progress').innerText.includes('1 found')")
        .await;
    browser
        .until("document.querySelector('main td a.query').innerText === 'a needle'")
        .await;
    browser.click(".progress button").await;
    browser
        .until("document.querySelector('.progress').innerText === 'Stopped.'")
        .await;
    let asked = browser
        .eval(
            "(() => { window.tick(); return performance.getEntriesByType('resource').length; })()",
        )
        .await;
    browser
        .until("!document.querySelector('main[aria-busy]')")
        .await;
    assert_eq!(
        browser
            .eval("performance.getEntriesByType('resource').length")
            .await,
        asked,
        "what was stopped stays so"
    );
    // Once it is not stopped, it comes to an end.
    browser.keys("body", "r").await;
    browser
        .until(
            "document.querySelector('.progress').innerText === '' && \
            !document.querySelector('main[aria-busy]')",
        )
        .await;
    assert_eq!(browser.texts("main td a.query").await, ["a needle"]);
    browser.close().await;
}

/// The chart tells of the bucket under the pointer, in its left half and in its right half.
#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn tooltip_shows_the_numbers_of_the_bar_under_the_pointer() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/").await;
    browser.click(".numbers summary").await;
    let rows = browser.texts(".numbers tbody tr").await;
    // Each step of 15 minutes has attempts and a row, except perhaps the last one.
    let series = ask(&service, "/v1/timeseries?max_steps=130").await;
    let steps = series["points"].as_array().unwrap().len();
    assert!(rows.len() + 1 >= steps, "{} of {steps}", rows.len());
    let over = browser.rectangle(".chart:nth-of-type(2) .u-over").await;
    let width = over.width / steps as f64;
    for index in [0, rows.len() / 2, rows.len() - 1] {
        for part in [0.1, 0.5, 0.9] {
            let x = over.x + width * (index as f64 + part);
            browser
                .mouse("mouseMoved", x, over.y + over.height / 2.0)
                .await;
            let tip = ".chart:nth-of-type(2) .tip";
            browser
                .until(&format!("!document.querySelector('{tip}').hidden"))
                .await;
            let shown = browser.texts(&format!("{tip} dd")).await;
            let cells: Vec<&str> = rows[index].split('\t').map(str::trim).collect();
            assert_eq!(shown[..4], cells[1..5], "{index} {part}");
            assert_eq!(shown[5], cells[5], "the attempts");
        }
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn a_finger_zooms_and_the_range_before_comes_back() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), PHONE).await;
    browser
        .devtools(
            "Emulation.setTouchEmulationEnabled",
            json!({"enabled": true}),
        )
        .await;
    browser.goto("/?since=7d").await;
    let over = browser.rectangle(".u-over").await;
    let y = over.y + over.height / 2.0;
    for (kind, share) in [
        ("touchStart", 0.75),
        ("touchMove", 0.8),
        ("touchMove", 0.95),
        ("touchEnd", 0.95),
    ] {
        let touch = json!({"x": over.x + over.width * share, "y": y});
        let points = if kind == "touchEnd" {
            json!([])
        } else {
            json!([touch])
        };
        browser
            .devtools(
                "Input.dispatchTouchEvent",
                json!({"type": kind, "touchPoints": points}),
            )
            .await;
    }
    browser.until("location.search.includes('from=')").await;
    browser.loaded().await;
    browser.click("#zoom-out").await;
    browser.until("location.search === '?since=7d'").await;
    browser.until("!document.querySelector('#zoom-out')").await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn small_screens_get_fewer_and_wider_bars() {
    let service = searched().await;
    for (width, most) in [(1440, 140), (768, 75), (360, 33)] {
        let screen = Screen { width, dark: false };
        let browser = Browser::open(service.url(""), screen).await;
        browser.goto("/").await;
        browser.click(".numbers summary").await;
        let bars = browser.texts(".numbers tbody tr").await.len();
        assert!((20..=most).contains(&bars), "{bars} bars at {width}");
        browser.close().await;
    }
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn annotations_are_lines_whose_text_the_pointer_shows() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/").await;
    // The middle of the chart, at an hour whose bars no line hides.
    let show = "const done = arguments[0]; import('./assets/plot.js').then((plot) => { \
         const at = new Date(Date.now() - 12 * 3600000).toISOString(); \
         plot.setAnnotations([{id: '1', at, text: '<b>new index</b>', version: 'v2'}]); \
         plot.recolor(); done(); });";
    browser
        .client
        .execute_async(show, vec![])
        .await
        .expect("an annotation");
    let over = browser.rectangle(".u-over").await;
    // The bars of 15 minutes around the middle of the day.
    let tip = "document.querySelector('.tip')";
    let mut shown = false;
    for step in -2..=2 {
        let x = over.x + over.width * (0.5 + f64::from(step) / 97.0);
        browser
            .mouse("mouseMoved", x, over.y + over.height / 2.0)
            .await;
        browser.until(&format!("!{tip}.hidden")).await;
        let text = browser.eval(&format!("{tip}.innerText")).await;
        let text = text.as_str().unwrap();
        shown |= text.contains("<b>new index</b>") && text.contains("v2");
    }
    assert!(shown, "an annotation is text, in the tooltip of its step");
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn strategy_filters_every_page_and_stays_in_the_url() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/").await;
    browser
        .until("document.querySelectorAll('#strategy option').length === 5")
        .await;
    browser
        .eval(
            "(() => { const list = document.getElementById('strategy'); list.value = 'graph'; \
        list.dispatchEvent(new Event('change')); })()",
        )
        .await;
    browser.until("location.search === '?strategy=graph'").await;
    browser.loaded().await;
    let summary = ask(&service, "/v1/summary").await;
    let strategies = summary["strategies"].as_array().unwrap();
    let graph = strategies
        .iter()
        .find(|one| one["retrieval_strategy"] == "graph")
        .unwrap();
    browser
        .until(&format!(
            "document.querySelector('[data-value=attempts]').innerText === '{}'",
            whole(&graph["rates"]["attempts"])
        ))
        .await;
    for page in ["failures", "queries", "calibration"] {
        browser
            .eval(&format!(
                "document.querySelector('nav a[href*={page}]').click()"
            ))
            .await;
        browser
            .until(&format!(
                "location.search.includes('page={page}') && \
                 location.search.includes('strategy=graph')"
            ))
            .await;
        browser.loaded().await;
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn period_that_was_not_counted_is_not_compared() {
    let service = Service::new(HttpOptions::default());
    for nth in 0..100 {
        let monitor = service.logger.strategy("semantic");
        let outcome = if nth % 4 == 0 {
            failure_logger::Outcome::failure(
                RetrievalFailureType::NoHit,
                "q",
                std::time::Duration::ZERO,
            )
        } else {
            failure_logger::Outcome::success(std::time::Duration::ZERO)
        };
        monitor.record(outcome);
    }
    service.logger.flush().await.expect("flush");
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?since=7d").await;
    let compared = browser.texts(".compared").await.remove(0);
    assert!(
        compared.starts_with("Not compared with the 7 days before. Attempts are counted since"),
        "{compared}"
    );
    assert_eq!(browser.texts(".change").await, Vec::<String>::new());
    // The present step has begun, and is marked.
    let hint = browser.texts(".hero .hint").await.join(" ");
    assert!(hint.contains("The hatched bar is not over yet"), "{hint}");
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn first_page_loads_less_than_60_kb_over_the_wire() {
    let service = searched().await;
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/").await;
    let bytes = browser
        .eval(
            "[...performance.getEntriesByType('navigation'), \
             ...performance.getEntriesByType('resource')] \
             .filter((entry) => !entry.name.includes('/v1/')) \
             .reduce((sum, entry) => sum + entry.encodedBodySize, 0)",
        )
        .await;
    let bytes = bytes.as_u64().unwrap();
    assert!((20_000..60_000).contains(&bytes), "{bytes} bytes");
    browser.close().await;
}

/// Each page, and each dialog, in both colours and both sizes.
#[tokio::test]
#[ignore = "needs Chromium, ChromeDriver and axe-core; .ci/run runs it"]
async fn people_who_cannot_see_or_use_a_mouse_are_not_shut_out() {
    let axe = std::env::var("AXE").expect("AXE names axe-core's axe.min.js");
    let axe = std::fs::read_to_string(&axe).expect("axe-core");
    let service = searched().await;
    let ranking = ask(&service, "/v1/queries?limit=1").await;
    let group = format!(
        "/?page=queries&group={}",
        ranking["data"][0]["id"].as_str().unwrap()
    );
    for dark in [false, true] {
        for width in [1440, 360] {
            let browser = Browser::open(service.url(""), Screen { width, dark }).await;
            for (page, dialog) in PAGES.into_iter().map(|page| (page, "")).chain([
                (
                    "/?page=failures&type=error",
                    "document.querySelector('td a.query').click()",
                ),
                ("/", "document.getElementById('help').click()"),
                (&group, ""),
                ("/?page=failures&text=nothing-like-this", ""),
            ]) {
                browser.goto(page).await;
                if !dialog.is_empty() {
                    browser.eval(dialog).await;
                    browser
                        .until("document.querySelector('dialog[open]')")
                        .await;
                }
                browser
                    .eval("document.querySelectorAll('details').forEach((of) => (of.open = true))")
                    .await;
                browser.client.execute(&axe, vec![]).await.expect("axe");
                let run = "const done = arguments[0]; axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})
                     .then((found) => done(found.violations.map((of) => [of.id, of.nodes.map((node) => node.html + ' ' + node.failureSummary).slice(0, 3)])), (error) => done(String(error)));";
                let found = browser
                    .client
                    .execute_async(run, vec![])
                    .await
                    .expect("axe");
                assert_eq!(found, json!([]), "{page} {dialog} at {width}, dark {dark}");
                assert_eq!(
                    browser
                        .eval("document.documentElement.scrollWidth <= innerWidth")
                        .await,
                    true,
                    "{page} is too wide at {width}"
                );
            }
            browser.close().await;
        }
    }
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn empty_query_is_a_filter_and_a_hidden_filter_is_none() {
    let service = Service::new(HttpOptions::default());
    log(&service, "").await;
    for query in ["one", "two", "three"] {
        log(&service, query).await;
    }
    let browser = Browser::open(service.url(""), DESK).await;
    browser.goto("/?page=failures&text=tw").await;
    assert_eq!(browser.texts("main tbody tr").await.len(), 1);
    // The overview counts all failures, and its link leads to a list of all failures.
    browser.keys("body", "1").await;
    browser
        .until("document.querySelector('[data-value=failures]')")
        .await;
    browser.click("table.types a").await;
    browser
        .until("document.querySelectorAll('main tbody tr').length === 4")
        .await;
    // The text that a person typed on one page does not filter another page.
    browser.keys("input[name=text]", "on").await;
    browser
        .eval("document.querySelector('nav a[href*=queries]').click()")
        .await;
    browser
        .until("document.querySelectorAll('main tbody tr').length === 4")
        .await;
    // A timer that is set later, for as long, ends later.
    let later = "setTimeout(arguments[0], 300)";
    browser
        .client
        .execute_async(later, vec![])
        .await
        .expect("a timer");
    assert!(!browser.query().await.contains("text"));
    browser.goto("/?page=failures").await;
    browser
        .eval(
            "[...document.querySelectorAll('main td a.query')].find((of) => of.innerText === \
            '(empty)').click()",
        )
        .await;
    browser
        .until(
            "document.querySelector('dialog.detail .hint').innerText.startsWith('These are all')",
        )
        .await;
    assert_eq!(
        browser.texts("dialog.detail tbody tr").await.len(),
        1,
        "one query is empty"
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and ChromeDriver; .ci/run runs it"]
async fn long_names_make_no_page_wider_than_the_screen() {
    let service = Service::new(HttpOptions::default());
    let name = "W".repeat(64);
    service
        .logger
        .strategy(&name)
        .record(failure_logger::Outcome::failure(
            RetrievalFailureType::NoHit,
            &name.repeat(8),
            std::time::Duration::ZERO,
        ));
    service.logger.flush().await.expect("flush");
    for width in [360, 720, 1024, 1440] {
        let browser = Browser::open(service.url(""), Screen { width, dark: false }).await;
        for page in [
            "/?",
            "/?page=failures",
            "/?page=queries",
            "/?page=calibration",
        ] {
            browser.goto(page).await;
            let wide = browser.eval("document.documentElement.scrollWidth").await;
            assert!(
                wide.as_u64().unwrap() <= u64::from(width),
                "{page} is {wide} wide at {width}"
            );
        }
        browser.close().await;
    }
}

/// Pictures of each page to look at, where `SCREENSHOTS` says: for an empty log, one with a single
/// failure, and one with many, in both colours and at three widths.
#[tokio::test]
#[ignore = "only makes pictures, for a person who sets SCREENSHOTS"]
async fn pictures() {
    let Some(folder) = std::env::var_os("SCREENSHOTS").map(PathBuf::from) else {
        return;
    };
    let empty = Service::new(HttpOptions::default());
    let single = Service::new(HttpOptions::default());
    log(&single, "where is the key?").await;
    let many = searched().await;
    for (log, service) in [("empty", &empty), ("one", &single), ("many", &many)] {
        let mut pages: Vec<(&str, String)> = ["overview", "failures", "queries", "calibration"]
            .into_iter()
            .map(|name| (name, format!("/?page={name}")))
            .collect();
        let ranking = ask(service, "/v1/queries?limit=1").await;
        if let Some(group) = ranking["data"][0]["id"].as_str() {
            pages.push(("group", format!("/?page=queries&group={group}")));
        }
        let newest = ask(service, "/v1/failures?limit=1").await;
        if let Some(failure) = newest["data"][0]["event_id"].as_str() {
            pages.push(("failure", format!("/?page=failures&failure={failure}")));
        }
        for (scheme, dark) in [("light", false), ("dark", true)] {
            for width in [1440, 768, 360] {
                let browser = Browser::open(service.url(""), Screen { width, dark }).await;
                for (name, page) in &pages {
                    browser.goto(page).await;
                    browser
                        .until("!document.querySelector('main[aria-busy]')")
                        .await;
                    let picture = browser.client.screenshot().await.expect("a picture");
                    let file = format!("{name}-{log}-{scheme}-{width}.png");
                    std::fs::write(folder.join(file), picture).expect("a file");
                }
                browser.close().await;
            }
        }
    }
}

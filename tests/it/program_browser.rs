//! The page of the program in a real browser, where Chromium and its driver are installed.

use std::fmt::Write as _;

use etcd_client::{Txn, TxnOp};
use fantoccini::key::Key;
use serde_json::json;
use tonic_etcd::Registry;

use super::program_page::{key, page, page_with_orders, put};
use crate::support::LIMIT;
use crate::support::browser::Browser;
use crate::support::etcd::Etcd;
use crate::support::process::{Process, example};

/// The addresses of the rows that are shown, those of servers that have just left aside.
const ROWS: &str =
    "return [...document.querySelectorAll('#table tbody tr:not(.is-gone) .open')].map((it) => it.textContent)";

async fn shows(browser: &Browser, what: &str, rows: &[&str]) {
    let script = format!(
        "const rows = (() => {{ {ROWS} }})(); return JSON.stringify(rows) === {}",
        json!(json!(rows).to_string())
    );
    browser.until(what, &script).await;
}

#[tokio::test]
async fn services_are_shown_and_followed_and_filtered_with_the_keyboard_alone() {
    let Some(browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    put(&etcd, "checkout", "10.0.0.1:80", r#""weight":7,"tags":{"zone":"a","version":"1.2"}"#).await;
    put(&etcd, "checkout", "10.0.0.2:80", r#""weight":10,"tags":{"zone":"b"},"draining":true"#).await;
    put(&etcd, "search", "10.0.0.3:80", r#""weight":10"#).await;
    let (_program, address) = page(&etcd, &[]).await;
    browser.open(&address).await;
    shows(&browser, "all instances", &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]).await;
    let row = browser.text("#table tbody tr").await;
    for part in ["live", "checkout", "7", "a", "version=1.2"] {
        assert!(row.contains(part), "{part} is in {row:?}");
    }
    let services = browser.text("#services").await;
    assert!(
        services.contains("checkout") && services.contains("search") && services.contains("1 draining"),
        "{services}"
    );

    put(&etcd, "search", "10.0.0.4:80", r#""weight":1"#).await;
    shows(&browser, "a join", &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"]).await;
    browser
        .until("it is in the timeline", "return /10.0.0.4:80\\s+joined/.test(document.querySelector('#log').innerText)")
        .await;
    browser.until("and on the strip", "return document.querySelectorAll('#strip .sign.joined').length > 0").await;
    put(&etcd, "search", "10.0.0.4:80", r#""weight":1,"draining":true"#).await;
    etcd.delete(key("search", "10.0.0.4:80")).await;
    shows(&browser, "a leave", &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]).await;
    browser
        .until("it is in the timeline", "return /10.0.0.4:80\\s+left/.test(document.querySelector('#log').innerText)")
        .await;

    // From here on without a mouse.
    browser.press(&[Key::Tab]).await;
    let skip = browser.run("return document.activeElement.textContent").await;
    assert_eq!(skip, json!("Skip to the instances"), "the first stop leads past the rest");
    let outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle").await;
    assert_eq!(outline, json!("solid"), "and what has the focus is seen");
    browser.enter("/").await;
    assert_eq!(browser.run("return document.activeElement.id").await, json!("filter"));
    browser.enter("zone=b").await;
    shows(&browser, "the filter", &["10.0.0.2:80"]).await;
    browser.press(&[Key::Escape]).await;
    shows(&browser, "no filter", &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]).await;
    browser.enter("checkout -draining").await;
    shows(&browser, "words, and words without", &["10.0.0.1:80"]).await;
    browser.press(&[Key::Escape]).await;
    browser.until("no filter", "return document.querySelectorAll('#table tbody tr').length === 3").await;
    browser.press(&[Key::Down]).await;
    browser.press(&[Key::Down]).await;
    let focused = browser.run("return document.activeElement.textContent").await;
    assert_eq!(focused, json!("10.0.0.2:80"), "arrows lead through the rows");
    browser.press(&[Key::Enter]).await;
    browser.until("details", "return document.querySelector('#details').open").await;
    let details = browser.text("#details").await;
    assert!(
        details.contains("10.0.0.2:80") && details.contains("draining") && details.contains("checkout"),
        "{details}"
    );
    browser.press(&[Key::Escape]).await;
    browser.until("they close", "return !document.querySelector('#details').open").await;
    let focused = browser.run("return document.activeElement.textContent").await;
    assert_eq!(focused, json!("10.0.0.2:80"), "and the focus is back where it was");
    browser.run("document.querySelector('#table thead th.weight button').focus()").await;
    browser.press(&[Key::Enter]).await;
    browser.press(&[Key::Enter]).await;
    shows(&browser, "sorted by weight, the largest first", &["10.0.0.2:80", "10.0.0.3:80", "10.0.0.1:80"]).await;
    let sorted = browser.run("return document.querySelector('#table thead th.weight').ariaSort").await;
    assert_eq!(sorted, json!("descending"));
    let unnamed = "return [...document.querySelectorAll('button, input, dialog, table')].filter((it) => \
                   !(it.textContent.trim() || it.ariaLabel || it.labels?.length || it.getAttribute('aria-labelledby'))).length";
    assert_eq!(browser.run(unnamed).await, json!(0), "everything that is operated has a name");
    assert_eq!(browser.console().await, Vec::<String>::new());
}

#[tokio::test]
async fn whatever_a_registry_holds_is_text() {
    let Some(browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    let markup = "<img src=x onerror=window.hacked=1>";
    let script = "</script><script>window.hacked=1</script>";
    let tags =
        json!({ "zone": script, markup: markup, "__proto__": "p", "constructor": "c", "rtl": "\u{202e}\u{0}'\"`${1}" });
    // Names of services cannot be markup: such keys are nothing to any client. They can be what scripts stumble over.
    put(&etcd, "<script>window.hacked=1", "10.0.0.9:80", r#""weight":1"#).await;
    put(&etcd, "constructor", "10.0.0.1:80", &format!(r#""weight":1,"tags":{tags}"#)).await;
    put(&etcd, "valueOf", "10.0.0.2:80", r#""weight":1"#).await;
    let folder = tempfile::tempdir().expect("a folder");
    let figures = folder.path().join("figures.json");
    let report = json!({
        "title": markup,
        "figures": [{ "name": markup, "value": script, "unit": markup }],
        "instances": { "10.0.0.1:80": { markup: script, "__proto__": 1 } },
    });
    std::fs::write(&figures, report.to_string()).expect("a file");
    let (_program, address) = page(&etcd, &["--allow-drain", "--figures", figures.to_str().expect("text")]).await;
    browser.open(&address).await;
    shows(&browser, "all instances", &["10.0.0.1:80", "10.0.0.2:80"]).await;
    browser.until("its figures", "return !document.querySelector('#figures').hidden").await;
    browser.run("[...document.querySelectorAll('.open')].find((it) => it.textContent === '10.0.0.1:80').click()").await;
    browser.until("details", "return document.querySelector('#details').open").await;
    for place in ["#table", "#details", "#figures"] {
        let text = browser.text(place).await;
        assert!(text.contains(markup) && text.contains(script), "{place} shows it as it is: {text}");
    }
    put(&etcd, "valueOf", "10.0.0.3:80", r#""weight":1"#).await;
    browser
        .until("a join is read out", "return document.querySelector('#news').textContent.includes('10.0.0.3')")
        .await;
    let foreign =
        "return document.querySelectorAll('#details img, main img, main script, #totals img, #figures img').length";
    assert_eq!(browser.run(foreign).await, json!(0), "none of it is an element");
    assert_eq!(browser.run("return window.hacked === undefined").await, json!(true), "and none of it ran");
    assert_eq!(browser.console().await, Vec::<String>::new(), "nor was any of it refused: it was never tried");

    let refused = "try { document.body.innerHTML = '<b>x</b>'; return 'taken' } catch (error) { return error.name }";
    assert_eq!(browser.run(refused).await, json!("TypeError"), "the page could not even if it wanted to");
}

/// How far the colours of texts are from what is behind them, the least of all.
const LEAST_CONTRAST: &str = r"
    const channel = (it) => (it / 255 <= 0.04045 ? it / 255 / 12.92 : ((it / 255 + 0.055) / 1.055) ** 2.4);
    const parse = (text) => (text.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
    const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const behind = (it) => {
      for (; it; it = it.parentElement) {
        const colour = parse(getComputedStyle(it).backgroundColor);
        if (colour.length < 4 || colour[3] === 1) return colour;
      }
      return [255, 255, 255];
    };
    let [least, where] = [21, ''];
    for (const it of document.querySelectorAll('body *')) {
      const hasText = [...it.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
      if (!hasText || it.closest('.hidden, .skip, :disabled, svg') || it.offsetParent === null) continue;
      const [a, b] = [luminance(parse(getComputedStyle(it).color)), luminance(behind(it))];
      const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (contrast < least) [least, where] = [contrast, `${it.className} ${it.textContent}`];
    }
    return [least, where];
";

#[tokio::test]
async fn light_and_dark_can_be_read_and_motion_can_be_reduced() {
    let Some(browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    put(&etcd, "echo", "10.0.0.1:80", r#""weight":7,"tags":{"zone":"a","version":"1"}"#).await;
    put(&etcd, "echo", "10.0.0.2:80", r#""weight":1,"draining":true"#).await;
    let (_program, address) = page(&etcd, &[]).await;
    browser.open(&address).await;
    shows(&browser, "all instances", &["10.0.0.1:80", "10.0.0.2:80"]).await;
    let mut backs = Vec::new();
    for scheme in ["light", "dark"] {
        browser.prefer("prefers-color-scheme", scheme).await;
        let is_set = format!("return matchMedia('(prefers-color-scheme: {scheme})').matches");
        browser.until("the scheme is set", &is_set).await;
        let least = browser.run(LEAST_CONTRAST).await;
        assert!(least[0].as_f64() >= Some(4.5), "{scheme}: {least}");
        backs.push(browser.run("return getComputedStyle(document.body).backgroundColor").await);
    }
    assert_ne!(backs[0], backs[1], "dark is dark");
    browser.prefer("prefers-reduced-motion", "reduce").await;
    put(&etcd, "echo", "10.0.0.3:80", r#""weight":1"#).await;
    browser.until("a join", "return document.querySelector('tr.is-new') !== null").await;
    let animation = browser.run("return getComputedStyle(document.querySelector('tr.is-new td')).animationName").await;
    assert_eq!(animation, json!("none"));
    let states = "return [...document.querySelectorAll('#table tbody td.state')].map((it) => [it.innerText.trim(), \
                  it.querySelector('path').getAttribute('d')])";
    let states = browser.run(states).await;
    assert!(states[0][0] == "live" && states[1][0] == "draining", "a word beside each colour: {states}");
    assert_ne!(states[0][1], states[1][1], "and a shape");
}

#[tokio::test]
async fn a_server_is_drained_from_the_page_where_that_is_allowed_and_after_a_question() {
    let Some(browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url()]));
    let instance = server.expect_event("listening", LIMIT).await["address"].as_str().expect("an address").to_owned();
    server.expect_event("registered", LIMIT).await;
    let (_looks, address) = page(&etcd, &[]).await;
    browser.open(&address).await;
    shows(&browser, "the server", &[&instance]).await;
    browser.click("#table .open").await;
    browser.until("its lease", "return /s left without/.test(document.querySelector('#details').innerText)").await;
    assert_eq!(
        browser.run("return document.querySelectorAll('.danger').length").await,
        json!(0),
        "this page only looks"
    );

    let (mut orders, address, token) = page_with_orders(&etcd).await;
    browser.open(&address).await;
    shows(&browser, "the server", &[&instance]).await;
    browser.click("#table .open").await;
    browser.until("a word", "return document.querySelector('.order').innerText.includes('the program printed')").await;
    assert_eq!(browser.run("return document.querySelectorAll('.danger').length").await, json!(0), "without the token");
    browser.press(&[Key::Escape]).await;
    browser.open(&format!("{address}/#{token}")).await;
    browser.until("the address bar is clean", "return location.href.endsWith('/')").await;
    shows(&browser, "the server", &[&instance]).await;
    browser.click("#table .open").await;
    browser.click(".danger").await;
    browser.until("a question", "return document.querySelector('.order').innerText.includes('to leave?')").await;
    assert_eq!(etcd.keys("").await.len(), 1, "nothing was ordered yet");
    let focused = browser.run("return document.activeElement.textContent").await;
    assert_eq!(focused, json!("Drain it"));
    // Another weight ends neither the question nor the focus on it.
    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    registry.set_weight("echo", instance.as_str(), 3).await.expect("the server takes it up");
    let heavier = "return /Weight\\s+3/.test(document.querySelector('#details').innerText)";
    browser.until("the new weight", heavier).await;
    assert_eq!(browser.run("return document.activeElement.textContent").await, json!("Drain it"));
    browser.press(&[Key::Enter]).await;
    orders.expect_event("marked", LIMIT).await;
    server.expect_event("drained", LIMIT).await;
    browser.until("it is off", "return document.querySelectorAll('#table tbody tr').length === 0").await;
    let details = browser.text("#details").await;
    assert!(details.contains("not registered any more"), "{details}");
    assert_eq!(browser.console().await, Vec::<String>::new());
}

#[tokio::test]
async fn thousands_of_instances_are_a_page_of_rows_at_a_time() {
    let Some(browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    for third in 0..12 {
        for part in 0..5 {
            let address = |index| format!("10.1.{third}.{}:80", part * 50 + index);
            let value = |address| format!(r#"{{"network":"tcp","address":"{address}","weight":1}}"#);
            let puts = (1..=50).map(|index| TxnOp::put(key("large", &address(index)), value(address(index)), None));
            client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.expect("etcd takes them");
        }
    }
    let (_program, address) = page(&etcd, &[]).await;
    browser.open(&address).await;
    let total = "return document.querySelector('#totals').innerText.includes('3,000')";
    browser.until("all are counted", total).await;
    assert_eq!(browser.run("return document.querySelectorAll('#table tbody tr').length").await, json!(50));
    assert!(browser.text("#shown").await.contains("1 to 50 of 3,000"), "{}", browser.text("#shown").await);
    browser.click("#next").await;
    browser.until("the next page", "return document.querySelector('#shown').innerText.includes('51 to 100')").await;
    browser.run("document.querySelector('#table .open').focus()").await;
    browser.press(&[Key::PageDown]).await;
    browser.until("the next page", "return document.querySelector('#shown').innerText.includes('101 to 150')").await;
    let first = "return document.activeElement === document.querySelector('#table .open')";
    browser.until("the first of its rows has the focus", first).await;
    browser.click("#filter").await;
    browser.enter("10.1.11.250").await;
    shows(&browser, "the last one", &["10.1.11.250:80"]).await;
    let elements = browser.run("return document.querySelectorAll('*').length").await;
    assert!(elements.as_u64() < Some(5_000), "however many there are: {elements}");
    assert_eq!(browser.console().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_lost_server_and_a_lost_etcd_are_shown_with_the_age_of_what_is_known() {
    let Some(browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    put(&etcd, "echo", "10.0.0.1:80", r#""weight":7"#).await;
    let (mut program, address) = page(&etcd, &[]).await;
    browser.open(&address).await;
    shows(&browser, "the instance", &["10.0.0.1:80"]).await;
    browser.until("etcd answers", "return document.querySelector('.links').innerText.includes('etcd answers')").await;
    etcd.kill();
    browser
        .until(
            "etcd is lost",
            "return /etcd does not answer.* is \\d+ s old/.test(document.querySelector('#stale').innerText)",
        )
        .await;
    shows(&browser, "what was known", &["10.0.0.1:80"]).await;
    etcd.restart().await;
    browser.until("etcd is back", "return document.querySelector('#stale').hidden").await;
    program.kill();
    let lost = "return /server is unreachable.* is \\d+ s old/.test(document.querySelector('#stale').innerText)";
    browser.until("the server is lost", lost).await;
    let alert = browser.run("return document.querySelector('[role=alert]').textContent").await;
    assert!(!alert.as_str().unwrap_or("1").contains(char::is_numeric), "an alert that does not change: {alert}");
    shows(&browser, "what was known", &["10.0.0.1:80"]).await;

    let mut command = crate::support::process::program();
    let mut again = Process::start(command.args(["--etcd", &etcd.url(), "--json", "web", "--listen", &address]));
    again.expect_event("listening", LIMIT).await;
    put(&etcd, "echo", "10.0.0.2:80", r#""weight":7"#).await;
    shows(&browser, "a page that came back by itself", &["10.0.0.1:80", "10.0.0.2:80"]).await;

    put(&etcd, "other", "10.0.0.3:80", r#""weight":7"#).await;
    shows(&browser, "all services", &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]).await;
    browser.run("[...document.querySelectorAll('.service')].find((it) => /echo/.test(it.textContent)).click()").await;
    shows(&browser, "the chosen service", &["10.0.0.1:80", "10.0.0.2:80"]).await;
    again.kill();
    let mut command = crate::support::process::program();
    let flags = ["--etcd", &etcd.url(), "--json", "web", "other", "--listen", &address];
    let mut narrower = Process::start(command.args(flags));
    narrower.expect_event("listening", LIMIT).await;
    shows(&browser, "the choice went with its service", &["10.0.0.3:80"]).await;
    let totals = browser.text("#totals").await;
    assert!(totals.contains("Instances") && !totals.contains("echo"), "{totals}");
    let mut said = String::new();
    for line in browser.console().await {
        // The browser itself says that a connection was refused.
        if !line.contains("net::ERR") {
            let _ = writeln!(said, "{line}");
        }
    }
    assert_eq!(said, "");
}

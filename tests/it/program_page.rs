//! The page of the program: what its server lets in, what it sends, and what it puts up with.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic_etcd::{Registry, RegistryError};

use crate::support::etcd::Etcd;
use crate::support::page::{Answer, Events, ask, exchange, get};
use crate::support::process::{Process, Signal, example, program};
use crate::support::{LIMIT, eventually};

/// The program with a page of this etcd, and the page's address: `127.0.0.1:port`.
pub(crate) async fn page(etcd: &Etcd, flags: &[&str]) -> (Process, String) {
    let mut command = program();
    command.args(["--etcd", &etcd.url(), "--json", "web", "--listen", "127.0.0.1:0"]).args(flags);
    let mut process = Process::start(&mut command);
    let url = process.expect_event("listening", LIMIT).await["url"].as_str().expect("a URL").to_owned();
    let address = url.trim_start_matches("http://").split('/').next().expect("an address").to_owned();
    (process, address)
}

/// The program with a page that may give orders, the page's address, and the token that the program prints with it.
pub(crate) async fn page_with_orders(etcd: &Etcd) -> (Process, String, String) {
    let mut command = program();
    command.args(["--etcd", &etcd.url(), "--json", "web", "--listen", "127.0.0.1:0", "--allow-drain"]);
    let mut process = Process::start(&mut command);
    let url = process.expect_event("listening", LIMIT).await["url"].as_str().expect("a URL").to_owned();
    let (address, token) = url.trim_start_matches("http://").split_once("/#").expect("a token at the end");
    (process, address.to_owned(), token.to_owned())
}

pub(crate) async fn put(etcd: &Etcd, service: &str, address: &str, rest: &str) {
    let value = format!(r#"{{"network":"tcp","address":"{address}",{rest}}}"#);
    etcd.put(key(service, address), value).await;
}

pub(crate) fn key(service: &str, address: &str) -> String {
    format!("kitex/registry-etcd/{service}/{address}")
}

/// All files of the page, as its own texts name them.
const FILES: [(&str, &str); 10] = [
    ("/", "text/html"),
    ("/style.css", "text/css"),
    ("/icon.svg", "image/svg+xml"),
    ("/main.js", "text/javascript"),
    ("/stream.js", "text/javascript"),
    ("/model.js", "text/javascript"),
    ("/table.js", "text/javascript"),
    ("/timeline.js", "text/javascript"),
    ("/details.js", "text/javascript"),
    ("/dom.js", "text/javascript"),
];

fn assert_locked(answer: &Answer) {
    let policy = answer.header("content-security-policy");
    for rule in [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(rule), "{rule} is not in {policy:?}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("http"), "{policy}");
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("x-frame-options", "DENY"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    assert_eq!(answer.header("access-control-allow-origin"), "", "no other site reads this");
}

#[tokio::test]
async fn every_answer_lets_a_browser_load_nothing_but_this_page() {
    let etcd = Etcd::start().await;
    let (_program, address) = page(&etcd, &[]).await;
    for (path, kind) in FILES {
        let answer = get(&address, path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-type").starts_with(kind), "{path}: {:?}", answer.headers);
        assert_locked(&answer);
        // The namespace of SVG is a name, and no address that anything is loaded from.
        let text = answer.body.replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("//cdn"), "{path} is alone");
        for unsafe_word in
            ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "style=", " onclick="]
        {
            assert!(!text.contains(unsafe_word), "{path} has {unsafe_word}");
        }
        let head = ask(&address, "HEAD", path, &[], "").await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path} has a head");
    }
    let html = get(&address, "/").await.body;
    assert_eq!(html.matches("<script").count(), html.matches(r#"<script type="module" src="/main.js">"#).count());
    for (path, status) in [("/nothing", 404), ("/../etc/passwd", 404), ("/main.js/", 404), ("//main.js", 404)] {
        let answer = get(&address, path).await;
        assert_eq!(answer.status, status, "{path}");
        assert_locked(&answer);
    }
}

#[tokio::test]
async fn a_page_that_only_looks_takes_no_orders() {
    let etcd = Etcd::start().await;
    let (_program, address) = page(&etcd, &[]).await;
    let own = format!("http://{address}");
    for (method, path, status, allow) in [
        ("POST", "/", 405, "GET, HEAD"),
        ("PUT", "/events", 405, "GET, HEAD"),
        ("DELETE", "/main.js", 405, "GET, HEAD"),
        ("GET", "/drain", 405, "POST"),
        ("OPTIONS", "/drain", 405, "POST"),
        ("POST", "/drain", 403, ""),
    ] {
        let answer = ask(&address, method, path, &[("origin", &own), ("content-type", "application/json")], "{}").await;
        assert_eq!((answer.status, answer.header("allow")), (status, allow), "{method} {path}");
        assert_locked(&answer);
    }
    let answer = ask(&address, "POST", "/drain", &[("origin", &own)], "{}").await;
    assert!(answer.body.contains("--allow-drain"), "it says what would let it: {}", answer.body);
}

#[tokio::test]
async fn requests_of_other_sites_and_under_other_names_get_nothing() {
    let etcd = Etcd::start().await;
    let (_program, address) = page(&etcd, &["--allow-host", "registry.example"]).await;
    let port = address.rsplit(':').next().expect("a port");
    for path in ["/", "/events", "/main.js", "/lease/1"] {
        for host in [format!("evil.example:{port}"), "localhost.evil.example".to_owned(), "evil.example".to_owned()] {
            let answer = ask(&address, "GET", path, &[("host", &host)], "").await;
            assert_eq!(answer.status, 403, "{path} under {host}, which a rebound name would send");
            assert_locked(&answer);
        }
    }
    for host in [format!("localhost:{port}"), format!("[::1]:{port}"), "registry.example".to_owned()] {
        assert_eq!(ask(&address, "GET", "/", &[("host", &host)], "").await.status, 200, "{host} is this server");
    }
    let no_host = exchange(&address, "GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(no_host.status, 400, "without a host it cannot tell");
    for header in [("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-site"), ("origin", "http://evil.example")]
    {
        assert_eq!(ask(&address, "GET", "/events", &[header], "").await.status, 403, "{header:?}");
    }
    let link = ask(&address, "GET", "/", &[("sec-fetch-site", "cross-site")], "").await;
    assert_eq!(link.status, 200, "a link may lead to the page");
}

#[tokio::test]
async fn other_machines_are_served_only_where_that_was_asked_for() {
    let etcd = Etcd::start().await;
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let flags = ["--etcd", &etcd.url(), "web", "--listen", listen];
        let mut refused = Process::start(program().args(flags));
        assert_eq!(refused.wait(LIMIT).await.code(), Some(2), "{listen}");
        assert!(refused.log().contains("--allow-remote"), "{}", refused.log());
    }
    let flags = ["--etcd", &etcd.url(), "--json", "web", "--listen", "0.0.0.0:0", "--allow-remote"];
    let mut allowed = Process::start(program().args(flags));
    let url = allowed.expect_event("listening", LIMIT).await["url"].as_str().expect("a URL").to_owned();
    let address = url.replace("http://0.0.0.0", "127.0.0.1");
    assert_eq!(get(address.trim_end_matches('/'), "/").await.status, 200);
    assert!(allowed.log().contains("WARN"), "and a warning says who may see it: {}", allowed.log());

    let taken = address.trim_end_matches('/').to_owned();
    let mut second = Process::start(program().args(["--etcd", &etcd.url(), "web", "--listen", &taken]));
    assert_eq!(second.wait(LIMIT).await.code(), Some(1), "a port that is taken is no wrong command line");
    assert!(second.log().contains(&taken), "{}", second.log());
}

#[tokio::test]
async fn a_stream_begins_with_all_that_is_known_and_goes_on_with_what_changes() {
    let etcd = Etcd::start().await;
    put(&etcd, "echo", "10.0.0.1:80", r#""weight":7,"tags":{"zone":"a"}"#).await;
    put(&etcd, "hello", "10.0.0.9:80", r#""weight":1"#).await;
    let (_program, address) = page(&etcd, &[]).await;
    // Until the program has looked there is nothing to begin with.
    Events::open(&address).await.expect("echo is known", "service", |data| data["service"] == "echo").await;

    let mut events = Events::open(&address).await;
    let (name, begin) = events.next(LIMIT).await.expect("an event");
    assert_eq!((name.as_str(), &begin["may_drain"]), ("begin", &json!(false)));
    let echo = events.expect("echo", "service", |data| data["service"] == "echo").await;
    let mut known = echo["instances"][0].clone();
    assert!(known["since"].take().is_null(), "it was there before");
    let expected = json!({
        "address": "10.0.0.1:80", "weight": 7, "state": "live", "lease": "0", "since": null, "tags": { "zone": "a" },
    });
    assert_eq!(known, expected);
    let log = events.expect("what happened", "log", |_| true).await;
    assert!(log.as_array().is_some_and(|log| log.iter().all(|entry| entry["what"] == "found")), "{log}");
    events.expect("the end of what is known", "live", |_| true).await;

    let is_change =
        |address: &'static str| move |data: &Value| data["set"][0]["address"] == address || data["gone"][0] == address;
    put(&etcd, "echo", "10.0.0.2:80", r#""weight":2"#).await;
    let joined = events.expect("a join", "change", is_change("10.0.0.2:80")).await;
    assert!(joined["set"][0]["since"].is_u64() && joined["service"] == "echo", "{joined}");
    let log = events.expect("the line of it", "log", |_| true).await;
    assert_eq!((&log[0]["what"], &log[0]["address"]), (&json!("joined"), &json!("10.0.0.2:80")));
    put(&etcd, "echo", "10.0.0.2:80", r#""weight":3"#).await;
    let changed = events.expect("a change", "change", is_change("10.0.0.2:80")).await;
    assert_eq!(changed["set"][0]["weight"], 3);
    put(&etcd, "echo", "10.0.0.2:80", r#""weight":3,"draining":true"#).await;
    let draining = events.expect("a mark", "change", is_change("10.0.0.2:80")).await;
    assert_eq!(draining["set"][0]["state"], "draining");
    etcd.delete(key("echo", "10.0.0.2:80")).await;
    let gone = events.expect("a leave", "change", is_change("10.0.0.2:80")).await;
    assert_eq!(gone["gone"], json!(["10.0.0.2:80"]));
    assert!(gone["version"].as_u64() > draining["version"].as_u64(), "later ones can be told from earlier ones");

    put(&etcd, "late", "10.0.0.3:80", r#""weight":1"#).await;
    let late = events.expect("a service that comes later", "service", |data| data["service"] == "late").await;
    assert!(late["instances"][0]["since"].is_u64(), "its instances have joined: {late}");
}

#[tokio::test]
async fn an_instance_in_doubt_is_shown_as_such_and_lost_later() {
    let etcd = Etcd::start().await;
    // Others stay: a service that is gone as a whole stays in doubt for longer.
    put(&etcd, "echo", "127.0.0.1:1", r#""weight":1"#).await;
    put(&etcd, "echo", "127.0.0.1:2", r#""weight":1"#).await;
    let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url(), "--ttl", "2"]));
    let instance = server.expect_event("listening", LIMIT).await["address"].clone();
    server.expect_event("registered", LIMIT).await;
    let (_program, address) = page(&etcd, &["echo"]).await;
    let mut events = Events::open(&address).await;
    let here = events.expect("the servers", "service", |_| true).await;
    let here = here["instances"].as_array().and_then(|all| all.iter().find(|one| one["address"] == instance).cloned());
    let lease = here.expect("the server")["lease"].as_str().expect("a lease").to_owned();
    let left: Value = serde_json::from_str(&get(&address, &format!("/lease/{lease}")).await.body).expect("JSON");
    assert!(left["granted"] == 2 && left["remaining"].as_u64() <= Some(2), "its lease is asked for: {left}");
    for other in ["1", "zz", "", "0", "-1"] {
        let answer = get(&address, &format!("/lease/{other}")).await;
        assert_eq!(answer.body, r#"{"granted":null,"remaining":null}"#, "no instance has the lease {other:?}");
    }

    server.kill();
    let what = |what: &'static str| move |log: &Value| log[0]["what"] == what;
    events.expect("doubt", "log", what("suspect")).await;
    let lost = events.expect("its end", "log", what("lost")).await;
    assert_eq!(lost[0]["address"], instance);
}

#[tokio::test]
async fn an_etcd_that_does_not_answer_is_told_and_one_that_does_again() {
    let etcd = Etcd::start().await;
    put(&etcd, "echo", "10.0.0.1:80", r#""weight":7"#).await;
    let (_program, address) = page(&etcd, &[]).await;
    let mut events = Events::open(&address).await;
    let before = events.expect("an answer", "beat", |beat| beat["answered"].is_u64()).await;
    assert!(before["trouble"].is_null(), "{before}");
    Events::open(&address).await.expect("echo", "service", |data| data["service"] == "echo").await;
    etcd.kill();
    let down = events.expect("trouble", "beat", |beat| beat["trouble"].is_string()).await;
    assert!(down["trouble"].as_str().is_some_and(|trouble| trouble.contains("etcd")), "{down}");
    // A page that is opened now is told what is known, and how old that is.
    let mut late = Events::open(&address).await;
    late.expect("what is known", "service", |data| data["service"] == "echo").await;
    let beat = late.expect("how old it is", "beat", |_| true).await;
    assert!(beat["answered"].as_u64() < beat["time"].as_u64() && beat["trouble"].is_string(), "{beat}");
    etcd.restart().await;
    events.expect("an answer again", "beat", |beat| beat["trouble"].is_null()).await;
}

#[tokio::test]
async fn an_order_needs_a_token_and_goes_to_the_server_that_is_meant() {
    let etcd = Etcd::start().await;
    let mut server = Process::start(example("echo_server").args(["--etcd", &etcd.url()]));
    let instance = server.expect_event("listening", LIMIT).await["address"].as_str().expect("an address").to_owned();
    server.expect_event("registered", LIMIT).await;
    let (mut program, address, token) = page_with_orders(&etcd).await;
    let is_here = |data: &Value| data["instances"][0]["address"] == instance.as_str();
    let here = Events::open(&address).await.expect("the server", "service", is_here).await;
    assert_eq!(token.len(), 32);
    for (path, _) in FILES {
        assert!(!get(&address, path).await.body.contains(&token), "{path} is for every account of the machine");
    }
    let token = format!("Bearer {token}");

    let own = format!("http://{address}");
    let good = [("origin", own.as_str()), ("content-type", "application/json"), ("authorization", token.as_str())];
    let lease = here["instances"][0]["lease"].as_str().expect("a lease");
    let order =
        |address: &str, lease: &str| json!({ "service": "echo", "address": address, "lease": lease }).to_string();
    let meant = order(&instance, lease);
    for (changed, value, status) in [
        (0, "http://evil.example", 403),
        (0, "null", 403),
        (1, "text/plain", 415),
        (2, "Bearer 00000000000000000000000000000000", 403),
        (2, "Basic eDp5", 403),
    ] {
        let mut headers = good;
        headers[changed].1 = value;
        assert_eq!(ask(&address, "POST", "/drain", &headers, &meant).await.status, status, "{value}");
    }
    for missing in 0..good.len() {
        let mut headers = good.to_vec();
        headers.remove(missing);
        let status = ask(&address, "POST", "/drain", &headers, &meant).await.status;
        assert!(status == 403 || status == 415, "without {:?}: {status}", good[missing]);
    }
    let too_large = order(&instance, &"1".repeat(5_000));
    for (body, status) in [
        ("", 400),
        ("{}", 400),
        ("[1]", 400),
        (r#"{"service":"a/b","address":"10.0.0.1:80","lease":"0"}"#, 404),
        (too_large.as_str(), 413),
        (&order("10.9.9.9:9", "0"), 404),
        (&order(&instance, "1"), 409),
    ] {
        assert_eq!(ask(&address, "POST", "/drain", &good, body).await.status, status, "{body:.60}");
    }
    assert_eq!(etcd.keys("").await.len(), 1, "nothing has come of all that");
    let answer = ask(&address, "POST", "/drain", &good, &meant).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"marked":true}"#));
    let marked = program.expect_event("marked", LIMIT).await;
    assert_eq!(marked["address"], instance, "who runs the program sees what was ordered");
    server.expect_event("drained", LIMIT).await;
}

#[tokio::test]
async fn an_order_meets_no_server_that_the_page_does_not_show_and_no_successor() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let mut leases = Vec::new();
    for _ in 0..2 {
        leases.push(client.lease_grant(600, None).await.expect("a lease").id());
    }
    let instance = "10.0.0.1:80";
    let value = format!(r#"{{"network":"tcp","address":"{instance}","weight":1}}"#);
    let put_leased = async |name: &str, lease: i64| {
        let mut client = etcd.client().await;
        let options = etcd_client::PutOptions::new().with_lease(lease);
        client.put(key("echo", name), value.clone(), Some(options)).await.expect("etcd takes it");
    };
    let marked = async || {
        let keys = etcd.keys("").await.into_iter();
        let marked = keys.filter(|(_, value, _)| String::from_utf8_lossy(value).contains("draining"));
        marked.map(|(_, _, lease)| lease).collect::<Vec<_>>()
    };
    put_leased(instance, leases[0]).await;
    put(&etcd, "other", "10.0.0.2:80", r#""weight":1"#).await;
    let flags = ["--etcd", &etcd.url(), "--json", "web", "echo", "--listen", "127.0.0.1:0", "--allow-drain"];
    let mut program = Process::start(program().args(flags));
    let url = program.expect_event("listening", LIMIT).await["url"].as_str().expect("a URL").to_owned();
    let (address, token) = url.trim_start_matches("http://").split_once("/#").expect("a token at the end");
    let is_here = |data: &Value| data["instances"][0]["address"] == instance;
    let here = Events::open(address).await.expect("the server", "service", is_here).await;
    let shown = here["instances"][0]["lease"].as_str().expect("a lease").to_owned();
    assert_eq!(shown, format!("{:x}", leases[0]));
    let (own, token) = (format!("http://{address}"), format!("Bearer {token}"));
    let headers = [("origin", own.as_str()), ("content-type", "application/json"), ("authorization", token.as_str())];
    let order = async |service: &str, instance: &str, lease: &str| {
        let body = json!({ "service": service, "address": instance, "lease": lease }).to_string();
        ask(address, "POST", "/drain", &headers, &body).await.status
    };
    assert_eq!(order("other", "10.0.0.2:80", "0").await, 404, "a service that the page does not show");

    // The successor comes between what the page has read and the order: 404 by etcd, or 409 once the page knows of it.
    put_leased(instance, leases[1]).await;
    let status = order("echo", instance, &shown).await;
    assert!(status == 404 || status == 409, "{status}");
    assert!(marked().await.is_empty(), "nothing was told to leave");

    let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
    let refused = registry.drain_leased("echo", instance, leases[0]).await.expect_err("its lease is another one");
    assert!(matches!(refused, RegistryError::UnknownAddress { .. }), "{refused}");
    assert!(marked().await.is_empty(), "by that neither");
    // Two keys of one address, as while a successor starts: one of them is meant.
    put_leased("twin", leases[0]).await;
    registry.drain_leased("echo", instance, leases[0]).await.expect("it has a key of that lease");
    assert_eq!(marked().await, [leases[0]], "and no other");
}

#[tokio::test]
async fn events_pass_proxies_at_once_and_a_proxy_may_ask_under_another_host() {
    let etcd = Etcd::start().await;
    let (_program, address) = page(&etcd, &["--allow-host", "registry.example"]).await;
    let head = ask(&address, "HEAD", "/events", &[("origin", "https://registry.example")], "").await;
    assert_eq!((head.status, head.header("x-accel-buffering")), (200, "no"));
    let foreign = ask(&address, "HEAD", "/events", &[("origin", "https://evil.example")], "").await;
    assert_eq!(foreign.status, 403);
}

#[tokio::test]
async fn ctrl_c_ends_it_though_the_file_of_figures_is_a_pipe() {
    let etcd = Etcd::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("figures.json");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    let (mut program, address) = page(&etcd, &["--figures", pipe.to_str().expect("a path of text")]).await;
    let mut events = Events::open(&address).await;
    let refused = events.expect("what is wrong", "figures", |data| data["trouble"].is_string()).await;
    assert!(refused["trouble"].as_str().is_some_and(|trouble| trouble.contains("no regular file")), "{refused}");
    program.signal(Signal::INT);
    assert!(program.wait(LIMIT).await.success());
}

#[tokio::test]
async fn so_many_pages_hear_of_a_change_and_one_more_is_told_to_come_later() {
    let etcd = Etcd::start().await;
    put(&etcd, "echo", "10.0.0.1:80", r#""weight":7"#).await;
    let (_program, address) = page(&etcd, &[]).await;
    let mut pages = Vec::new();
    for _ in 0..64 {
        pages.push(Events::open(&address).await);
    }
    let refused = Events::try_open(&address).await.expect_err("the 65th has no place");
    assert!(refused.contains("503"), "{refused}");
    assert_eq!(get(&address, "/").await.status, 200, "the page itself is still served");
    for events in &mut pages {
        events.expect("echo", "service", |data| data["service"] == "echo").await;
    }
    put(&etcd, "echo", "10.0.0.2:80", r#""weight":2"#).await;
    for events in &mut pages {
        events.expect("a join", "change", |data| data["set"][0]["address"] == "10.0.0.2:80").await;
    }
    pages.pop();
    let opens = async || Events::try_open(&address).await.is_ok();
    eventually("a page that closes makes place", LIMIT, opens).await;
}

#[tokio::test]
async fn a_page_that_does_not_read_holds_up_no_other() {
    let etcd = Etcd::start().await;
    let large = format!(r#""weight":1,"tags":{{"large":"{}"}}"#, "x".repeat(60_000));
    for index in 0..100 {
        put(&etcd, "echo", &format!("10.0.0.1:{}", 1_000 + index), &large).await;
    }
    let (program, address) = page(&etcd, &["echo"]).await;
    let mut quick = Events::open(&address).await;
    let is_whole = |data: &Value| data["instances"].as_array().is_some_and(|all| all.len() == 100);
    quick.expect("all of it", "service", is_whole).await;
    let mut slow = Vec::new();
    for _ in 0..30 {
        slow.push(Events::open(&address).await);
    }
    for weight in 2..40 {
        put(&etcd, "echo", "10.0.0.2:80", &format!(r#""weight":{weight}"#)).await;
    }
    quick.expect("the last change", "change", |data| data["set"][0]["weight"] == 39).await;
    let (memory, _) = program.memory();
    assert!(memory < 200 << 20, "30 pages that do not read share 6 MB: {memory}");
    let mut last = slow.pop().expect("a slow page");
    last.expect("what it is by then", "service", |_| true).await;
    // It was encoded at some time before or after the last change; both end in the same.
    last.expect("the last change, or the end of what is known", "live", |_| true).await;
}

#[tokio::test]
async fn ctrl_c_ends_it_at_once_though_pages_are_open() {
    let etcd = Etcd::start().await;
    let (mut program, address) = page(&etcd, &[]).await;
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(Events::open(&address).await);
    }
    let mut half = TcpStream::connect(&address).await.expect("it listens");
    half.write_all(b"GET / HTTP/1.1\r\nhost: loc").await.expect("half a request");
    let begin = Instant::now();
    program.signal(Signal::INT);
    for events in &mut open {
        events.expect("a last word", "bye", |_| true).await;
        assert_eq!(events.next(LIMIT).await, None, "and the end");
    }
    assert!(program.wait(LIMIT).await.success(), "ctrl-c is how it ends");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(10), "it took {took:?}");
}

#[tokio::test]
async fn a_head_that_is_too_large_or_does_not_end_is_cut_off() {
    let etcd = Etcd::start().await;
    let (_program, address) = page(&etcd, &[]).await;
    let large = ask(&address, "GET", "/", &[("x-large", &"x".repeat(20_000))], "").await;
    assert_eq!(large.status, 431);
    let many: Vec<_> = (0..200).map(|_| ("x-many", "x")).collect();
    assert_eq!(ask(&address, "GET", "/", &many, "").await.status, 431);
    let bad = exchange(&address, "\0\0\0\r\n\r\n").await;
    assert_eq!(bad.status, 400);

    let mut silent = TcpStream::connect(&address).await.expect("it listens");
    let mut slow = TcpStream::connect(&address).await.expect("it listens");
    slow.write_all(b"GET / HTTP/1.1\r\n").await.expect("the first line");
    for stream in [&mut silent, &mut slow] {
        let mut rest = Vec::new();
        let closed = timeout(LIMIT, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "a head that does not come has a limit");
    }
}

#[tokio::test]
async fn figures_of_a_file_are_shown_and_what_is_wrong_with_it() {
    let etcd = Etcd::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("figures.json");
    let path = file.to_str().expect("a path of text");
    let (_program, address) = page(&etcd, &["--figures", path]).await;
    let mut events = Events::open(&address).await;
    let missing = events.expect("no file", "figures", |data| data["trouble"].is_string()).await;
    assert!(missing["trouble"].as_str().is_some_and(|trouble| trouble.contains("figures.json")), "{missing}");
    fs::write(&file, r#"{"title":"client","figures":[{"name":"calls a second","value":200}]}"#).expect("a file");
    let figures = events.expect("figures", "figures", |data| data["trouble"].is_null()).await;
    assert_eq!(figures["figures"], json!([{ "name": "calls a second", "value": 200.0, "unit": "" }]));
    for wrong in [r#"{"figures":3}"#.to_owned(), "{".to_owned(), format!(r#"{{"title":"{}"}}"#, "x".repeat(300_000))] {
        fs::write(&file, wrong).expect("a file");
        events.expect("what is wrong", "figures", |data| data["trouble"].is_string()).await;
        fs::write(&file, "{}").expect("a file");
        events.expect("a good one again", "figures", |data| data["trouble"].is_null()).await;
    }
}

//! `GET /authz`: a proxy asks before it passes a request on.

use std::net::SocketAddr;
use std::process::Stdio;

use http::Method;
use hub_client::proto::hub::api_keys::v1::SetRateLimitRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::verify::set_base_urls;
use super::{create, new_key, revoke};
use crate::support::{Answer, Backend, TestHub, request};

const TICKETS: &str = "/authz?product=psa&action=tickets.read";
/// Well-formed, and nobody's.
const UNKNOWN: &str = "tos_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o51xqYGe";

async fn ask(at: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Answer {
    request(at, Method::GET, path, headers, "").await
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

fn reason(answer: &Answer) -> String {
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["status"], answer.status.as_u16());
    assert_eq!(problem["callId"], answer.header("x-request-id"));
    problem["reason"].as_str().unwrap().to_owned()
}

both_databases! {
    async fn a_proxy_is_told_who_calls_and_what_is_left(hub: TestHub) {
        let key = bearer(&hub.key("", &["psa:tickets.*", "crm:deals.read"]).await);
        let answer = ask(hub.addr, TICKETS, &[("authorization", &key)]).await;
        assert_eq!(answer.status, 200);
        assert!(answer.header("x-hub-key-id").starts_with("key_"));
        assert_eq!(answer.header("x-hub-tenant-id"), hub.first_tenant().id);
        assert_eq!(answer.header("x-hub-scopes"), "psa:tickets.* crm:deals.read");
        assert_eq!(answer.header("x-ratelimit-limit"), "100");
        assert_eq!(answer.header("x-ratelimit-remaining"), "99");
        assert!(!answer.header("x-ratelimit-reset").is_empty());
        let again = ask(hub.addr, TICKETS, &[("authorization", &key)]).await;
        assert_eq!(again.header("x-ratelimit-remaining"), "98", "each request is counted");
    }

    async fn a_refusal_has_its_status_its_reason_and_the_rate_headers(hub: TestHub) {
        let key = bearer(&hub.key("", &["crm:*"]).await);
        let answer = ask(hub.addr, TICKETS, &[("authorization", &key)]).await;
        assert_eq!((answer.status.as_u16(), &*reason(&answer)), (403, "PRODUCT_MISMATCH"));
        assert_eq!(answer.header("x-ratelimit-remaining"), "100");
        assert!(answer.header("x-hub-key-id").is_empty());
        let nobody = ask(hub.addr, TICKETS, &[]).await;
        assert_eq!((nobody.status.as_u16(), &*reason(&nobody)), (401, "KEY_MISSING"));
        assert_eq!(nobody.header("www-authenticate"), "Bearer");
        let unknown = bearer(UNKNOWN);
        let unknown = ask(hub.addr, TICKETS, &[("authorization", &unknown)]).await;
        assert_eq!((unknown.status.as_u16(), &*reason(&unknown)), (401, "KEY_NOT_RECOGNIZED"));
    }

    async fn of_two_keys_a_proxy_is_told_that_neither_counts(hub: TestHub) {
        let (one, two) = (hub.key("", &["psa:*"]).await, hub.key("", &["psa:*"]).await);
        let (one, joined) = (bearer(&one), format!("Bearer {one}, Bearer {two}"));
        let two = bearer(&two);
        for headers in [
            &[("authorization", &*one), ("authorization", &*two)][..],
            &[("authorization", &*joined)],
            &[("authorization", &*one), ("x-api-key", &two[7..])],
        ] {
            let answer = ask(hub.addr, TICKETS, headers).await;
            assert_eq!((answer.status.as_u16(), &*reason(&answer)), (401, "KEY_MALFORMED"));
        }
    }

    async fn a_request_with_a_key_in_its_query_string_is_refused(hub: TestHub) {
        let key = hub.key("", &["psa:*"]).await;
        let (header, uri) = (bearer(&key), format!("/tickets?key={key}"));
        let headers = [("authorization", &*header), ("x-forwarded-uri", &*uri)];
        let answer = ask(hub.addr, TICKETS, &headers).await;
        assert_eq!((answer.status.as_u16(), &*reason(&answer)), (401, "KEY_MALFORMED"));
        assert!(!answer.text().contains(&key));
    }

    async fn a_proxy_that_tells_a_host_and_no_path_is_at_the_root_of_it(hub: TestHub) {
        let key = bearer(&hub.key("", &["psa:*"]).await);
        set_base_urls(&hub, "psa", &["https://api.example.com/psa"], 0).await;
        let host = ("x-forwarded-host", "api.example.com");
        let headers = [("authorization", &*key), host];
        assert_eq!(reason(&ask(hub.addr, TICKETS, &headers).await), "BASE_URL_MISMATCH");
        let headers = [("authorization", &*key), host, ("x-forwarded-uri", "/psa/tickets")];
        assert_eq!(ask(hub.addr, TICKETS, &headers).await.status, 200);
    }

    async fn a_proxy_that_asks_wrongly_lets_nothing_through(hub: TestHub) {
        let key = bearer(&hub.key("", &["psa:*"]).await);
        for query in [
            "",
            "?",
            "?product=psa",
            "?action=tickets.read",
            "?product=psa&action=*",
            "?product=psa&action=tickets.*",
            "?product=psa&action=tickets.read&product=crm",
            "?product=psa&action=tickets.read&key=tos_1",
            "?product=p%73a&action=tickets.read",
            "?product=pas&action=tickets.read",
        ] {
            let path = format!("/authz{query}");
            let answer = ask(hub.addr, &path, &[("authorization", &key)]).await;
            assert_eq!(answer.status, 500, "{query}");
            let reason = reason(&answer);
            assert!(["FIELD_INVALID", "PRODUCT_NOT_FOUND"].contains(&&*reason), "{query} {reason}");
        }
    }

    async fn the_client_s_address_is_what_the_proxy_says_and_not_what_the_client_says(
        hub: TestHub
    ) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let mut office = new_key("office", &["psa:*"]);
        office.allowed_cidrs = vec!["192.0.2.0/24".to_owned()];
        let key = bearer(&create(&admin, office).await.unwrap().plaintext);
        let from = async |forwarded: &str| {
            let headers = [("authorization", &*key), ("x-forwarded-for", forwarded)];
            ask(hub.addr, TICKETS, &headers).await.status.as_u16()
        };
        assert_eq!(from("192.0.2.7").await, 200);
        assert_eq!(from("198.51.100.1, 192.0.2.7").await, 200);
        assert_eq!(from("192.0.2.7, 198.51.100.1").await, 403, "the first one wrote the client");
        assert_eq!(from("nobody").await, 403);
        let untold = ask(hub.addr, TICKETS, &[("authorization", &key)]).await;
        assert_eq!(reason(&untold), "IP_NOT_ALLOWED");
    }

    async fn nginx_passes_on_what_is_allowed_and_says_who_calls(backend: Backend) {
        let hub = TestHub::start(backend).await;
        let nginx = Nginx::start(hub.addr).await;
        set_base_urls(&hub, "psa", &[&format!("http://{}", nginx.addr)], 0).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let made = create(&admin, new_key("ours", &["psa:tickets.read"])).await.unwrap();
        let (key, key_id) = (bearer(&made.plaintext), made.api_key.unwrap().key_id);
        let spoofed = [
            ("authorization", &*key),
            ("x-hub-key-id", "key_spoofed"),
            ("x-hub-tenant-id", "tnt_spoofed"),
            ("x-hub-scopes", "hub:*"),
        ];
        let path = "/tickets?product=crm&action=deals.write";
        let answer = ask(nginx.addr, path, &spoofed).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-ratelimit-remaining"), "99");
        let seen = answer.text();
        assert!(seen.starts_with("get /tickets?product=crm"), "{seen}");
        assert!(seen.contains(&format!("x-hub-key-id: {key_id}\r\n")), "{seen}");
        assert!(seen.contains(&format!("x-hub-tenant-id: {}\r\n", hub.first_tenant().id)));
        assert!(seen.contains("x-hub-scopes: psa:tickets.read\r\n"), "{seen}");
        assert!(!seen.contains("spoofed"), "{seen}");

        assert_eq!(ask(nginx.addr, "/", &[]).await.status, 401);
        let limit = SetRateLimitRequest { key_id: key_id.clone(), requests_per_minute: 1 };
        admin.api_keys().set_rate_limit(limit).await.unwrap();
        assert_eq!(ask(nginx.addr, "/", &[("authorization", &key)]).await.status, 200);
        let answer = ask(nginx.addr, "/", &[("authorization", &key)]).await;
        assert_eq!(answer.status, 429);
        assert_eq!(answer.header("x-ratelimit-remaining"), "0");
        assert!(!answer.header("retry-after").is_empty());
        set_base_urls(&hub, "psa", &[&format!("http://{}", nginx.addr)], 403).await;
        let answer = ask(nginx.addr, "/", &[("authorization", &key)]).await;
        assert_eq!(answer.status, 403);
        assert!(!answer.header("retry-after").is_empty());
        revoke(&admin, &key_id, "leaked").await.unwrap();
        let answer = ask(nginx.addr, "/", &[("authorization", &key)]).await;
        assert_eq!(answer.status, 403);
        assert_eq!(answer.header("x-ratelimit-limit"), "1");
        assert_eq!(answer.header("retry-after"), "");
    }
}

/// nginx before a product that answers with the head of the request that it got.
struct Nginx {
    addr: SocketAddr,
    _process: Child,
    _folder: tempfile::TempDir,
}

impl Nginx {
    async fn start(hub: SocketAddr) -> Nginx {
        let folder = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = free.local_addr().unwrap();
        let product = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let product_addr = product.local_addr().unwrap();
        tokio::spawn(serve(product));
        drop(free);
        let text = include_str!("nginx.conf")
            .replace("$folder", folder.path().to_str().unwrap())
            .replace("$addr", &addr.to_string())
            .replace("$hub", &hub.to_string())
            .replace("$product", &product_addr.to_string());
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, text).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let process = Command::new("nginx")
            .env("PATH", format!("{path}:/usr/sbin:/usr/local/sbin"))
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("nginx: tests/run installs it");
        while TcpStream::connect(addr).await.is_err() {
            tokio::task::yield_now().await;
        }
        Nginx {
            addr,
            _process: process,
            _folder: folder,
        }
    }
}

/// Answers each connection with what it said.
async fn serve(product: TcpListener) {
    while let Ok((mut stream, _)) = product.accept().await {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte.to_ascii_lowercase()),
                Err(_) => return,
            }
        }
        let length = head.len();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.write_all(&head).await.unwrap();
    }
}

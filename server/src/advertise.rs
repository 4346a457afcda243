//! Where the other processes on the same database reach this one.

use std::net::SocketAddr;

use axum::http::Uri;

use crate::config::Config;

/// Refuses what is no address of a server: scheme, host and port, nothing else.
pub fn check(url: &str) -> Result<String, String> {
    let wrong = || "write http://HOST:PORT or https://HOST:PORT".to_owned();
    let parsed: Uri = url.parse().map_err(|_| wrong())?;
    let scheme = parsed.scheme_str().unwrap_or_default();
    let has_host = parsed.host().is_some_and(|host| !host.is_empty());
    let has_user = url.contains('@');
    let is_bare = matches!(parsed.path(), "" | "/") && parsed.query().is_none();
    if !["http", "https"].contains(&scheme) || !has_host || has_user || !is_bare {
        return Err(wrong());
    }
    Ok(url.trim_end_matches('/').to_owned())
}

/// Refuses an address of which the others on a PostgreSQL could make nothing.
pub fn check_address(
    advertise: Option<&str>,
    database: &str,
    address: SocketAddr,
) -> Result<(), String> {
    let is_shared = database.starts_with("postgres");
    if advertise.is_some() || !is_shared || !address.ip().is_unspecified() {
        return Ok(());
    }
    Err(format!(
        "--listen {address} is no address at which the other hub processes on this PostgreSQL \
         reach this one. Give --advertise http://HOST:{port} (or https://) with its own name or \
         address",
        port = address.port()
    ))
}

/// The address of a server that listens there.
pub fn address(config: &Config, address: SocketAddr) -> Result<String, String> {
    check_address(config.advertise.as_deref(), &config.database, address)?;
    let scheme = if config.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let own = || Ok(format!("{scheme}://{address}"));
    config.advertise.as_deref().map_or_else(own, check)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_scheme_host_and_port() {
        for good in [
            "http://10.0.0.1:7070",
            "https://hub-1.internal:7070",
            "http://[::1]:7070",
            "http://hub",
        ] {
            assert_eq!(check(good).as_deref(), Ok(good));
            assert_eq!(check(&format!("{good}/")).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "hub:7070",
            "10.0.0.1:7070",
            "ftp://hub:7070",
            "http://",
            "http://hub/a",
            "http://hub?a",
            "http://user@hub:7070",
            "http:///a",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_address_needs_a_name_only_where_others_look_for_it() {
        let any: SocketAddr = "0.0.0.0:7070".parse().unwrap();
        let own: SocketAddr = "10.0.0.1:7070".parse().unwrap();
        let mut config = Config::new("sqlite:hub.db");
        assert!(address(&config, any).is_ok());
        config.database = "postgres://db/hub".to_owned();
        let refused = address(&config, any).unwrap_err();
        assert!(
            refused.contains("--advertise http://HOST:7070"),
            "{refused}"
        );
        assert_eq!(address(&config, own).unwrap(), "http://10.0.0.1:7070");
        config.advertise = Some("https://hub-1.internal:7070/".to_owned());
        assert_eq!(
            address(&config, any).unwrap(),
            "https://hub-1.internal:7070"
        );
    }
}

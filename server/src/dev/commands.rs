//! The commands that a newcomer pastes first. `hub dev` prints them with its keys, README shows
//! them with variables; both are rendered from the one list here, and a test compares README.

use std::fmt::Write;

/// Where the commands go, and with which keys.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Host and port, `127.0.0.1:7070`.
    pub address: &'a str,
    /// Key of the tenant's administrator.
    pub admin_key: &'a str,
    /// Key that speaks for the product `psa`.
    pub psa_key: &'a str,
    /// Key that speaks for the product `portal`.
    pub portal_key: &'a str,
}

/// Whose key a call is made with.
#[derive(Clone, Copy)]
enum Caller {
    Admin,
    Psa,
    Portal,
}

/// A call that shows something.
struct Call {
    title: &'static str,
    method: &'static str,
    caller: Caller,
    body: &'static str,
    /// curl has no gRPC: a stream is read with `buf curl`.
    stream: bool,
}

const CALLS: [Call; 3] = [
    Call {
        title: "Ask who you are",
        method: "hub.api_keys.v1.ApiKeys/WhoAmI",
        caller: Caller::Admin,
        body: "{}",
        stream: false,
    },
    Call {
        title: "Publish a ticket.created as PSA",
        method: "hub.event_bus.v1.EventBus/Publish",
        caller: Caller::Psa,
        body: r#"{"events":[{"id":"ticket-42-created","source":"/psa/tickets","specVersion":"1.0","type":"ticket.created","textData":"{\"id\":42}"}]}"#,
        stream: false,
    },
    Call {
        title: "Receive it as Portal, and everything that follows; end with Ctrl-C",
        method: "hub.event_bus.v1.EventBus/Subscribe",
        caller: Caller::Portal,
        body: r#"{"filter":{"types":["ticket.*"]},"start":{"earliest":true}}"#,
        stream: true,
    },
];

/// All commands as a terminal shows them.
pub fn printed(target: Target<'_>) -> String {
    let mut text = String::new();
    for call in &CALLS {
        // Writing to a String cannot fail.
        let _ = write!(text, "# {}\n{}\n", call.title, call.curl(target));
        let _ = write!(
            text,
            "# the same with grpcurl\n{}\n\n",
            call.grpcurl(target)
        );
    }
    text
}

impl Call {
    fn key<'a>(&self, target: Target<'a>) -> &'a str {
        match self.caller {
            Caller::Admin => target.admin_key,
            Caller::Psa => target.psa_key,
            Caller::Portal => target.portal_key,
        }
    }

    fn curl(&self, target: Target<'_>) -> String {
        let (program, content_type) = if self.stream {
            ("buf curl --protocol grpc --http2-prior-knowledge", "")
        } else {
            ("curl -sS", " -H 'content-type: application/json'")
        };
        format!(
            "{program} -H \"authorization: Bearer {}\"{content_type} \\\n  -d '{}' \\\n  \
             http://{}/{}",
            self.key(target),
            self.body,
            target.address,
            self.method
        )
    }

    fn grpcurl(&self, target: Target<'_>) -> String {
        format!(
            "grpcurl -plaintext -H \"authorization: Bearer {}\" \\\n  -d '{}' \\\n  {} {}",
            self.key(target),
            self.body,
            target.address,
            self.method
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VARIABLES: Target<'static> = Target {
        address: "127.0.0.1:7070",
        admin_key: "$HUB_ADMIN_KEY",
        psa_key: "$HUB_PSA_KEY",
        portal_key: "$HUB_PORTAL_KEY",
    };

    /// What README holds between its markers.
    fn readme_blocks() -> String {
        let mut text = String::new();
        for (number, call) in (1..).zip(&CALLS) {
            let _ = write!(
                text,
                "\n{number}. {}:\n\n```sh\n{}\n```\n\n```sh\n{}\n```\n",
                call.title,
                call.curl(VARIABLES),
                call.grpcurl(VARIABLES)
            );
        }
        text + "\n"
    }

    #[test]
    fn readme_shows_the_commands_that_hub_dev_prints() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
        let readme = std::fs::read_to_string(path).unwrap();
        let start = readme.split_once("<!-- first-commands -->\n").unwrap().1;
        let shown = start.split_once("<!-- /first-commands -->").unwrap().0;
        assert_eq!(shown, readme_blocks(), "copy the right side into README.md");
    }

    #[test]
    fn a_printed_command_carries_the_key_of_its_caller() {
        let target = Target {
            address: "[::1]:1",
            admin_key: "a",
            psa_key: "b",
            portal_key: "c",
        };
        let text = printed(target);
        for (method, key) in [("WhoAmI", "a"), ("Publish", "b"), ("Subscribe", "c")] {
            let bearer = format!("Bearer {key}\"");
            let commands = text
                .split("\n# ")
                .filter(|command| command.contains(method));
            assert_eq!(
                commands.filter(|command| command.contains(&bearer)).count(),
                2
            );
        }
        assert!(!text.contains('$') && !text.contains("7070"));
    }
}

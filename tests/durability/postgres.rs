//! A PostgreSQL server of the test's own, which it may kill.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// Stopped when it is dropped.
pub struct Server {
    /// What `--database` takes.
    pub url: String,
    control: PathBuf,
    folder: TempDir,
}

impl Server {
    pub fn start() -> Server {
        let control = env::var_os("HUB_TEST_POSTGRES_CTL").map(PathBuf::from);
        let control = control.expect("HUB_TEST_POSTGRES_CTL is not set: run tests/run");
        let folder = TempDir::with_prefix("hub-test-postgres-").unwrap();
        // The server runs as another user, who has to pass through this folder.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(folder.path(), open).unwrap();
        let mut server = Server {
            url: String::new(),
            control,
            folder,
        };
        server.url = server.run("create");
        server
    }

    /// SIGKILL to the server and all its processes.
    pub fn kill(&self) {
        self.run("kill");
    }

    /// Starts it again; it recovers from its log first.
    pub fn start_again(&self) {
        self.run("start");
    }

    /// What it logged.
    pub fn log(&self) -> String {
        let place = self.folder.path().join("server").join("log");
        String::from_utf8_lossy(&std::fs::read(place).unwrap()).into_owned()
    }

    fn run(&self, verb: &str) -> String {
        let place = self.folder.path().join("server");
        let output = Command::new(&self.control)
            .arg(verb)
            .arg(place)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb}: {error}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let place = self.folder.path().join("server");
        let stopped = Command::new(&self.control).arg("stop").arg(place).status();
        if !stopped.is_ok_and(|status| status.success()) {
            eprintln!("a private PostgreSQL could not be stopped");
        }
    }
}

//! A server as a process of its own: started, watched, killed at the end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{PATIENCE, Result};

/// Pause between two looks at a server that starts.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Lines of the log that an error shows.
const LOG_LINES: usize = 12;

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts a program; what it writes goes to `log`.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(name: &'static str, command: &mut Command, log: &Path) -> Result<Self> {
        let output = File::create(log)?;
        let errors = output.try_clone()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("{name} can't be started: {error}"))?;
        Ok(Server {
            name,
            child,
            log: log.to_owned(),
        })
    }

    /// Waits until `ready` gives something.
    ///
    /// # Errors
    /// It ended, or took longer than [`PATIENCE`]; the end of its log is in the error.
    pub async fn until<T>(&mut self, mut ready: impl AsyncFnMut() -> Option<T>) -> Result<T> {
        let started = Instant::now();
        loop {
            if let Some(value) = ready().await {
                return Ok(value);
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(self.failure(&format!("ended ({status})")));
            }
            if started.elapsed() > PATIENCE {
                return Err(self.failure("was not ready in time"));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn failure(&self, what: &str) -> crate::Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n  ");
        format!("{} {what}:\n  {tail}", self.name).into()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Processor time that it has used; zero where the system does not tell.
    pub fn cpu(&self) -> Duration {
        cpu_of(&self.pid().to_string())
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// The system does not tell (it is not Linux).
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| {
                rest.trim()
                    .trim_end_matches("kB")
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .ok_or("there is no VmRSS")?;
        Ok(kib << 10)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time that this process has used.
pub fn own_cpu() -> Duration {
    cpu_of("self")
}

/// All threads of a process, in nanoseconds: `stat` counts in steps of 10 ms.
fn cpu_of(process: &str) -> Duration {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
        return Duration::ZERO;
    };
    let nanos = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

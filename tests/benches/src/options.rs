//! What the programs are told, and the contenders that they start.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::disk::Disk;
use crate::hub::HubServer;
use crate::nats::Nats;
use crate::postgres::Postgres;
use crate::redis::Redis;
use crate::round::Run;
use crate::scratch::Scratch;
use crate::server::{Server, own_cpu};
use crate::{Result, report};

/// Pause before each measurement: what the one before left to do is done by then.
const SETTLE: Duration = Duration::from_millis(300);

/// Flags of the programs that measure contenders.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Rounds; every contender has one turn in each.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Only these contenders: hub-sqlite, hub-postgres, redis, nats, limit.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// What is measured and where.
    #[command(flatten)]
    pub setting: Setting,
}

/// What is measured and where: flags of every program.
#[derive(Debug, Clone, clap::Args)]
pub struct Setting {
    /// File whose table of this program is replaced by the new one.
    #[arg(long)]
    pub write: Option<PathBuf>,
    /// This binary of hub, instead of a release build of this repository.
    #[arg(long)]
    pub hub: Option<PathBuf>,
    /// Directory for the data of all servers; else that of temporary files.
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

/// Who takes part, in the order of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Hub on SQLite.
    HubSqlite,
    /// Redis Streams.
    Redis,
    /// NATS JetStream.
    Nats,
    /// Hub on PostgreSQL.
    HubPostgres,
    /// A file.
    Limit,
}

impl Name {
    /// All of them.
    pub const ALL: [Name; 5] = [
        Name::HubSqlite,
        Name::Redis,
        Name::Nats,
        Name::HubPostgres,
        Name::Limit,
    ];

    /// As in `--only`.
    pub fn flag(self) -> &'static str {
        match self {
            Name::HubSqlite => "hub-sqlite",
            Name::Redis => "redis",
            Name::Nats => "nats",
            Name::HubPostgres => "hub-postgres",
            Name::Limit => "limit",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Name::HubSqlite => "Hub, SQLite",
            Name::Redis => "Redis Streams",
            Name::Nats => "NATS JetStream",
            Name::HubPostgres => "Hub, PostgreSQL",
            Name::Limit => "disk limit",
        })
    }
}

/// A contender that was started.
#[derive(Debug)]
pub enum Contender {
    /// Either of the hubs; PostgreSQL is stopped after its hub.
    Hub(Box<HubServer>, Option<Postgres>),
    /// Redis Streams.
    Redis(Redis),
    /// NATS JetStream.
    Nats(Nats),
    /// A file.
    Limit(Disk),
}

impl Contender {
    /// Its process, if it is one.
    pub fn server(&self) -> Option<&Server> {
        match self {
            Contender::Hub(hub, _) => Some(hub.server()),
            Contender::Redis(redis) => Some(redis.server()),
            Contender::Nats(nats) => Some(nats.server()),
            Contender::Limit(_) => None,
        }
    }

    /// Publishes with `window` events in flight, after a pause.
    ///
    /// # Errors
    /// It failed.
    pub async fn publish(&mut self, window: usize, duration: Duration) -> Result<Run> {
        tokio::time::sleep(SETTLE).await;
        let before = self.cpu();
        let run = match self {
            Contender::Hub(hub, _) => hub.publish(window, duration).await,
            Contender::Redis(redis) => redis.publish(window, duration).await,
            Contender::Nats(nats) => nats.publish(window, duration).await,
            Contender::Limit(disk) => disk.publish(window, duration),
        };
        run.map(|run| self.with_cpu(run, before))
    }

    /// Publishes to `readers`; `None` for the file, which has none, and for `light` readers of a
    /// peer: theirs are so anyway.
    ///
    /// # Errors
    /// It failed.
    pub async fn fanout(
        &mut self,
        readers: usize,
        light: bool,
        window: usize,
        duration: Duration,
    ) -> Result<Option<Run>> {
        if light && !matches!(self, Contender::Hub(..)) {
            return Ok(None);
        }
        tokio::time::sleep(SETTLE).await;
        let before = self.cpu();
        let run = match self {
            Contender::Hub(hub, _) => hub.fanout(readers, light, window, duration).await,
            Contender::Redis(redis) => redis.fanout(readers, window, duration).await,
            Contender::Nats(nats) => nats.fanout(readers, window, duration).await,
            Contender::Limit(_) => return Ok(None),
        };
        Ok(Some(self.with_cpu(run?, before)))
    }

    /// Publishes to a durable consumer that acks everything; `None` for the file, which has none.
    ///
    /// # Errors
    /// It failed.
    pub async fn consume(&mut self, window: usize, duration: Duration) -> Result<Option<Run>> {
        tokio::time::sleep(SETTLE).await;
        let before = self.cpu();
        let run = match self {
            Contender::Hub(hub, _) => hub.consume(window, duration).await,
            Contender::Redis(redis) => redis.consume(window, duration).await,
            Contender::Nats(nats) => nats.consume(window, duration).await,
            Contender::Limit(_) => return Ok(None),
        };
        Ok(Some(self.with_cpu(run?, before)))
    }

    /// Processor time of the server and of this process.
    fn cpu(&self) -> [Duration; 2] {
        [
            self.server().map(Server::cpu).unwrap_or_default(),
            own_cpu(),
        ]
    }

    fn with_cpu(&self, run: Run, before: [Duration; 2]) -> Run {
        let [server, client] = self.cpu();
        Run {
            server_cpu: server.saturating_sub(before[0]),
            client_cpu: client.saturating_sub(before[1]),
            ..run
        }
    }
}

/// Contenders and the directory of their data, which outlives them.
#[derive(Debug)]
pub struct Contenders {
    /// Those that could be started.
    pub started: Vec<(Name, Contender)>,
    scratch: Scratch,
}

impl Contenders {
    /// Where their data is.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }
}

impl Options {
    /// Length of each measurement.
    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.clamp(0.01, 600.0))
    }

    /// Starts those of `names` that were asked for; says which can't be.
    ///
    /// # Errors
    /// No hub can be started, or this is no release build.
    pub async fn start(&self, names: &[Name]) -> Result<Contenders> {
        for only in &self.only {
            if !Name::ALL.iter().any(|name| name.flag() == only) {
                return Err(format!("--only {only}: there is no such contender").into());
            }
        }
        let asked =
            |name: &Name| self.only.is_empty() || self.only.iter().any(|only| only == name.flag());
        let repository = report::repository();
        let binary = self.setting.binary()?;
        let scratch = self.setting.scratch()?;
        let mut started = Vec::new();
        for name in names.iter().copied().filter(asked) {
            match start(name, &binary, &repository, &scratch).await {
                Ok(contender) => {
                    if let Some(server) = contender.server() {
                        eprintln!("{name}: process {}", server.pid());
                    }
                    started.push((name, contender));
                }
                Err(error) => eprintln!("{name} is left out: {error}"),
            }
        }
        match started.is_empty() {
            true => Err("nothing could be started".into()),
            false => Ok(Contenders { started, scratch }),
        }
    }
}

impl Setting {
    /// The binary of hub; built if there is no newer build of it.
    ///
    /// # Errors
    /// It can't be built, or this is no release build.
    pub fn binary(&self) -> Result<PathBuf> {
        if cfg!(debug_assertions) {
            return Err("this is a debug build: run it with --release".into());
        }
        if let Some(hub) = &self.hub {
            return Ok(hub.canonicalize()?);
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--release", "--quiet", "--package", "hub-server"])
            .args(["--bin", "hub"])
            .current_dir(report::repository())
            .status()?;
        if !status.success() {
            return Err("hub can't be built".into());
        }
        let program = std::env::current_exe()?;
        Ok(program.with_file_name("hub"))
    }

    /// A new directory for the data of all servers.
    ///
    /// # Errors
    /// It can't be made.
    pub fn scratch(&self) -> Result<Scratch> {
        Ok(Scratch::new(self.dir.as_deref())?)
    }

    /// Prints a result, and replaces the one of this program in the file of `--write`.
    ///
    /// # Errors
    /// The file has no markers of this name, or can't be written.
    pub fn publish(&self, name: &str, text: &str) -> Result<()> {
        report::publish(name, text, self.write.as_deref())
    }
}

async fn start(
    name: Name,
    binary: &Path,
    repository: &Path,
    scratch: &Scratch,
) -> Result<Contender> {
    Ok(match name {
        Name::HubSqlite => {
            Contender::Hub(Box::new(HubServer::sqlite(binary, scratch).await?), None)
        }
        Name::HubPostgres => {
            let postgres = Postgres::start(repository, scratch.path().join("postgres"))?;
            let hub = HubServer::postgres(binary, scratch, postgres.url()).await?;
            Contender::Hub(Box::new(hub), Some(postgres))
        }
        Name::Redis => Contender::Redis(Redis::start(scratch).await?),
        Name::Nats => Contender::Nats(Nats::start(scratch).await?),
        Name::Limit => Contender::Limit(Disk::new(&scratch.path().join("limit"))?),
    })
}

//! Redis servers for the tests: on free loopback ports, in temporary folders. They end with the process.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use redis::aio::MultiplexedConnection;
use tempfile::TempDir;

use crate::certificates::Certificates;
use crate::eventually;
use crate::proxy::Proxy;

/// A running server.
pub struct RedisServer {
    folder: PathBuf,
    port: u16,
    tls_port: Option<u16>,
    /// Stops the server and removes its folder when its input closes, however this process ends.
    _supervisor: Child,
}

/// Runs the server, and restarts it when it dies, until the input closes. The input closes even if the test process is
/// killed, which could not stop the server itself. The loop and the server are one process group, which is killed as a
/// whole.
pub(crate) const SUPERVISOR: &str = r#"
folder=$1; shift
# After a Ctrl-C there is still a server to stop.
trap : INT TERM
setsid sh -c '
    folder=$1; shift
    while :; do
        "$@" </dev/null >>"$folder/log" 2>&1 &
        echo $! >"$folder/pid"
        wait $!
    done
' loop "$folder" "$@" &
cat >/dev/null
# It may be about to begin its group.
until kill -s KILL -- "-$!" || ! kill -0 "$!"; do sleep 0.05; done
rm -rf "$folder"
"#;

impl RedisServer {
    /// One server for all tests of a process.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceLock<RedisServer> = OnceLock::new();
        let server = SHARED.get_or_init(|| Self::launch(&[]));
        server.until_ready().await;
        server
    }

    /// A server for one test, with these settings, such as `--maxmemory 10mb`.
    pub async fn start(settings: &[&str]) -> Self {
        let server = Self::launch(settings);
        server.until_ready().await;
        server
    }

    /// # Panics
    ///
    /// When Redis is not installed.
    fn launch(settings: &[&str]) -> Self {
        Self::launch_at(free_port(), settings)
    }

    fn launch_at(port: u16, settings: &[&str]) -> Self {
        let folder = TempDir::with_prefix("redis").expect("a temporary folder").keep();
        let mut supervisor = Command::new("sh");
        supervisor.args(["-c", SUPERVISOR, "supervisor"]).arg(&folder).args([server(), "--port".to_owned()]);
        supervisor.arg(port.to_string()).args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--dir"]);
        supervisor.arg(&folder).args(settings.iter().flat_map(|setting| setting.split(' ')));
        // The shell would print a message for every process that is killed.
        let supervisor = supervisor.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("sh starts");
        Self { folder, port, tls_port: None, _supervisor: supervisor }
    }

    /// A server for one test with a second port, which speaks TLS, and with these settings.
    pub async fn start_with_tls(certificates: &Certificates, settings: &[&str]) -> Self {
        Self::start_with_tls_at(free_port(), certificates, settings).await
    }

    /// A Cluster of one server, which redirects its clients to the port that speaks TLS.
    pub async fn start_cluster_with_tls(certificates: &Certificates) -> Self {
        let settings =
            ["--cluster-enabled yes", "--cluster-announce-ip 127.0.0.1", "--tls-cluster yes", "--tls-auth-clients no"];
        let server = Self::start_with_tls_at(port_with_bus(), certificates, &settings).await;
        server.take_all_slots().await;
        server
    }

    /// A Cluster of one server, which does not announce its host.
    pub async fn start_cluster_of_one() -> Self {
        let server = Self::start_in_cluster(&[]).await;
        server.take_all_slots().await;
        server
    }

    async fn take_all_slots(&self) {
        // A busy server needs a while to assign all slots, so assign them in parts.
        for first in (0..16_384).step_by(1024) {
            let slots: Vec<String> = (first..first + 1024).map(|slot: u32| slot.to_string()).collect();
            let _: String = self.command(&format!("CLUSTER ADDSLOTS {}", slots.join(" "))).await;
        }
        let info = async || self.command::<String>("CLUSTER INFO").await;
        eventually(info, |info| info.contains("cluster_state:ok")).await;
    }

    async fn start_with_tls_at(tls_port: u16, certificates: &Certificates, settings: &[&str]) -> Self {
        let port = format!("--tls-port {tls_port}");
        let files = [("cert", "server.pem"), ("key", "server.key"), ("ca-cert", "ca.pem")];
        let files = files.map(|(setting, file)| format!("--tls-{setting}-file {}", certificates.path(file)));
        let mut all: Vec<&str> = files.iter().map(String::as_str).collect();
        all.push(&port);
        all.extend(settings);
        let mut server = Self::start(&all).await;
        server.tls_port = Some(tls_port);
        server
    }

    /// The port that speaks TLS.
    ///
    /// # Panics
    ///
    /// When the server has no such port.
    pub fn tls_port(&self) -> u16 {
        self.tls_port.expect("it was started with TLS")
    }

    /// A server for a Cluster. Version 6.2 has no setting for the port of the bus, so the bus uses the default port.
    async fn start_in_cluster(settings: &[&str]) -> Self {
        let server = Self::launch_at(port_with_bus(), &[&["--cluster-enabled yes"], settings].concat());
        server.until_ready().await;
        server
    }

    async fn until_ready(&self) {
        let ping = async || {
            let client = redis::Client::open(self.url()).map_err(|error| error.to_string())?;
            let connection = client.get_multiplexed_async_connection().await;
            let mut connection = connection.map_err(|error| error.to_string())?;
            redis::cmd("PING").query_async::<String>(&mut connection).await.map_err(|error| error.to_string())
        };
        eventually(ping, Result::is_ok).await.expect("awaited");
    }

    /// The URL of the server.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// The address, as `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The folder of its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A new connection.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("the URL is well-formed");
        client.get_multiplexed_async_connection().await.expect("the server answers")
    }

    /// Sends one command.
    ///
    /// # Panics
    ///
    /// When the server rejects it, or answers something else.
    pub async fn command<T: redis::FromRedisValue>(&self, words: &str) -> T {
        self.try_command(words).await.expect("the server answers")
    }

    /// Sends one command, which a server that is slow or starting may fail to answer.
    ///
    /// # Errors
    ///
    /// When the server rejects it, or does not answer.
    pub async fn try_command<T: redis::FromRedisValue>(&self, words: &str) -> redis::RedisResult<T> {
        let mut words = words.split(' ');
        let mut command = redis::cmd(words.next().unwrap_or_default());
        words.for_each(|word| _ = command.arg(word));
        let client = redis::Client::open(self.url())?;
        command.query_async(&mut client.get_multiplexed_async_connection().await?).await
    }

    /// The major version. For Valkey, the version of Redis whose commands it supports.
    ///
    /// # Panics
    ///
    /// When the server does not report its version.
    pub async fn version(&self) -> u32 {
        let info: String = self.command("INFO server").await;
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")?.split('.').next());
        version.and_then(|version| version.parse().ok()).expect("a version")
    }

    /// Kills the server, and waits until it runs again with the same files.
    pub async fn restart(&self) {
        self.restart_by("KILL").await;
    }

    /// Shuts the server down in order, and waits until it runs again with the same files.
    pub async fn restart_in_order(&self) {
        self.restart_by("TERM").await;
    }

    async fn restart_by(&self, signal: &str) {
        let before = self.process();
        self.signal(signal);
        eventually(async || self.process(), |process| !process.is_empty() && *process != before).await;
        self.until_ready().await;
    }

    /// Sends a signal, such as `STOP`, to the server.
    ///
    /// # Panics
    ///
    /// When the server has no process.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([&format!("-{signal}"), self.process().as_str()]).status();
        assert!(status.expect("kill starts").success(), "the signal is sent");
    }

    fn process(&self) -> String {
        fs::read_to_string(self.folder.join("pid")).unwrap_or_default().trim().to_owned()
    }
}

/// A Cluster of three masters.
pub struct RedisCluster {
    masters: Vec<RedisServer>,
}

impl RedisCluster {
    /// One Cluster for all tests of a process.
    pub async fn shared() -> &'static Self {
        static SHARED: tokio::sync::OnceCell<RedisCluster> = tokio::sync::OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// # Panics
    ///
    /// When `redis-cli` cannot make one.
    async fn start() -> Self {
        let mut masters = Vec::new();
        for _ in 0..3 {
            masters.push(RedisServer::start_in_cluster(&[]).await);
        }
        let mut create = Command::new(program("redis-cli"));
        create.args(["--cluster", "create"]).args(masters.iter().map(RedisServer::address)).arg("--cluster-yes");
        let created = tokio::task::spawn_blocking(move || create.output()).await.expect("the task runs");
        let created = created.expect("redis-cli starts");
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
        for master in &masters {
            eventually(
                async || master.command::<String>("CLUSTER INFO").await,
                |info| info.contains("cluster_state:ok"),
            )
            .await;
        }
        Self { masters }
    }

    /// The URLs of its servers.
    pub fn urls(&self) -> Vec<String> {
        self.masters.iter().map(RedisServer::url).collect()
    }

    /// Its servers.
    pub fn masters(&self) -> &[RedisServer] {
        &self.masters
    }
}

/// The masters of a Cluster that clients reach through these proxies, one for each master. The masters announce the
/// addresses of their proxies.
///
/// # Panics
///
/// When the servers form no Cluster, or a proxy listens on a socket.
pub async fn cluster_behind(proxies: &[&Proxy]) -> Vec<RedisServer> {
    let mut masters: Vec<RedisServer> = Vec::new();
    let slots = 16_384 / proxies.len();
    for (number, proxy) in proxies.iter().enumerate() {
        let (host, port) = proxy.address().rsplit_once(':').expect("a port");
        let announced = format!("--cluster-announce-ip {host} --cluster-announce-port {port}");
        let master = RedisServer::start_in_cluster(&[&announced]).await;
        let bus = master.port + BUS;
        let _: String = master.command(&format!("CONFIG SET cluster-announce-bus-port {bus}")).await;
        let own_slots: Vec<String> = (number * slots..(number + 1) * slots).map(|slot| slot.to_string()).collect();
        let _: String = master.command(&format!("CLUSTER ADDSLOTS {}", own_slots.join(" "))).await;
        proxy.lead_to(master.address());
        if let Some(first) = masters.first() {
            let _: String = first.command(&format!("CLUSTER MEET 127.0.0.1 {} {bus}", master.port)).await;
        }
        masters.push(master);
    }
    for master in &masters {
        eventually(async || master.command::<String>("CLUSTER INFO").await, |info| info.contains("cluster_state:ok"))
            .await;
    }
    masters
}

/// The distance between a server's port and the port of its bus.
const BUS: u16 = 10_000;

fn port_with_bus() -> u16 {
    let mut ports = std::iter::repeat_with(free_port);
    let is_free = |port: &u16| port.checked_add(BUS).is_some_and(|bus| TcpListener::bind(("127.0.0.1", bus)).is_ok());
    ports.find(is_free).expect("a port in the lower half is free sooner or later")
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

/// The program. `TEST_REDIS_SERVER` is the path of another server.
pub(crate) fn server() -> String {
    std::env::var("TEST_REDIS_SERVER").unwrap_or_else(|_| program("redis-server"))
}

fn program(name: &str) -> String {
    let answers = Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
    assert!(answers, "no `{name}` here: install it with `apt-get install redis-server`");
    name.to_owned()
}

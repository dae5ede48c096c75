//! The script of docs/long-poll.md behind an nginx that buffers all answers: it sees each step of a job as it comes, while a
//! stream through the same nginx shows nothing before its end.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::TcpStream;
use tokio::task::spawn_blocking;

use super::{finish, until_open};
use crate::support::{Gateway, eventually, free_port, spawn, within};

const PAGE: &str = include_str!("../../../docs/long-poll.md");
/// The gateway's address on the page.
const ON_PAGE: &str = "http://127.0.0.1:8080/v1/rooms/job-7/events";

/// A process that is killed when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An nginx that buffers whatever the gateway says, in front of a gateway.
struct Buffering {
    url: String,
    _nginx: Process,
    _folder: tempfile::TempDir,
}

impl Buffering {
    /// `version`: of HTTP between nginx and the gateway.
    async fn start(gateway: &Gateway, version: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (path, port) = (folder.path(), free_port());
        std::fs::write(path.join("nginx.conf"), config(path, port, gateway.address(), version)).unwrap();
        let mut command = Command::new("nginx");
        command.args(["-e", "stderr", "-p"]).arg(path).args(["-c", "nginx.conf"]);
        let nginx = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let nginx = Process(nginx.expect("nginx is installed; `tests/run install` installs it"));
        eventually("nginx listens", async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
        Self { url: format!("http://127.0.0.1:{port}"), _nginx: nginx, _folder: folder }
    }
}

fn config(folder: &Path, port: u16, gateway: &str, version: &str) -> String {
    let folder = folder.display();
    format!(
        "daemon off; master_process off; pid {folder}/pid;
         events {{}}
         http {{
             access_log off;
             client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
             uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
             server {{
                 listen 127.0.0.1:{port};
                 location / {{
                     proxy_pass http://{gateway};
                     proxy_http_version {version};
                     proxy_set_header Host $http_host;
                     proxy_buffering on;
                     proxy_ignore_headers X-Accel-Buffering;
                 }}
             }}
         }}"
    )
}

/// The script on the page, for another address.
fn script(url: &str) -> String {
    let blocks = PAGE.split("```sh").skip(1).filter_map(|rest| rest.split_once('\n')?.1.split_once("```"));
    let script = blocks.map(|(script, _)| script).find(|script| script.contains("until ")).expect("a script");
    assert!(script.lines().count() <= 12 && script.contains(ON_PAGE), "{script}");
    script.replace(ON_PAGE, &format!("{url}{}", super::EVENTS))
}

/// The next line of the script's output. `None` at its end.
async fn line(mut output: Lines<BufReader<ChildStdout>>) -> (Option<String>, Lines<BufReader<ChildStdout>>) {
    let reading = spawn_blocking(move || (output.next().map(Result::unwrap), output));
    within("a line of the script", reading).await.unwrap()
}

on_both_brokers! {
    async fn p2_a_script_sees_each_step_of_a_job_behind_a_proxy_that_buffers(world) {
        for version in ["1.0", "1.1"] {
            let gateway = world.gateway().await;
            let proxy = Buffering::start(&gateway, version).await;
            gateway.answer(gateway.request(reqwest::Method::DELETE, super::EVENTS)).await;
            gateway.publish("job", "10 %").await;
            let has_begun = Arc::new(AtomicBool::new(false));
            let (begins, url) = (has_begun.clone(), format!("{}/v1/rooms/job/stream", proxy.url));
            let stream = spawn(async move {
                let mut response = reqwest::get(url).await.unwrap();
                let mut text = Vec::new();
                while let Some(bytes) = response.chunk().await.unwrap() {
                    begins.store(true, Ordering::SeqCst);
                    text.extend(bytes);
                }
                String::from_utf8(text).unwrap()
            });
            until_open(&gateway, 1).await;
            let mut command = Command::new("sh");
            command.args(["-c", &script(&proxy.url)]).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut running = Process(command.spawn().unwrap());
            let mut output = BufReader::new(running.0.stdout.take().unwrap()).lines();
            let mut next;
            (next, output) = line(output).await;
            assert_eq!(next.as_deref(), Some("10 %"));
            for step in ["40 %", "70 % \\ \"almost\""] {
                gateway.publish("job", step).await;
                (next, output) = line(output).await;
                assert_eq!(next.as_deref(), Some(step), "HTTP/{version}");
            }
            // nginx passes on what comes in chunks. By default it asks with HTTP/1.0, which has none.
            assert!(version == "1.1" || !has_begun.load(Ordering::SeqCst), "nginx does not buffer");
            finish(&gateway).await;
            (next, output) = line(output).await;
            assert_eq!(next.as_deref(), Some("last"));
            assert_eq!(line(output).await.0, None);
            let status = within("the script's end", spawn_blocking(move || running.0.wait())).await.unwrap();
            assert!(status.unwrap().success());
            let stream = within("the stream's end", stream).await.unwrap();
            assert!(stream.contains("data: 40 %\n") && stream.contains("event: stream.end\n"), "{stream}");
        }
    }
}

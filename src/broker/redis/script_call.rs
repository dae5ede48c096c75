//! A call of a script. Each argument is written once, into the command; the library's own type keeps a copy of each.

use redis::{Cmd, ErrorKind, RedisResult, Script, ServerErrorKind, ToRedisArgs, Value};

use super::connections::RedisConn;

/// Bytes of a command that are not those of its keys and arguments.
const OVERHEAD: usize = 128;

/// A call of a script.
pub(super) struct ScriptCall<'a> {
    script: &'a Script,
    command: Cmd,
}

impl<'a> ScriptCall<'a> {
    /// A call with these keys, and with so many arguments that have so many bytes together.
    pub(super) fn new(script: &'a Script, keys: &[String], count: usize, bytes: usize) -> Self {
        let bytes = bytes + keys.iter().map(String::len).sum::<usize>();
        let mut command = Cmd::with_capacity(3 + keys.len() + count, OVERHEAD + bytes);
        command.arg("EVALSHA").arg(script.get_hash()).arg(keys.len()).arg(keys);
        Self { script, command }
    }

    /// Adds arguments.
    pub(super) fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        self.command.arg(argument);
        self
    }

    /// Makes the call. A server that does not have the script gets it first.
    pub(super) async fn invoke(&self, conn: &mut RedisConn) -> RedisResult<Value> {
        match conn.send(&self.command).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.script.load_async(conn.connection()).await?;
                conn.send(&self.command).await
            }
            result => result,
        }
    }
}

//! Real applications through the product: PostgreSQL, Redis, nginx, with their own programs as
//! users.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use sg_tests::bytes::Sequence;
use sg_tests::counterpart::nginx::Nginx;
use sg_tests::counterpart::postgres::Postgres;
use sg_tests::counterpart::redis::Redis;
use sg_tests::{Launch, Site, debian, prepare};

/// PostgreSQL behind a site with one client; answers the port that users connect to.
async fn postgres() -> Result<(Site, sg_tests::Client, Postgres, u16)> {
    prepare();
    let mut site = Site::start().await?;
    let postgres = Postgres::start(site.ports().server()).await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    let database = site
        .destination(&gateway, "db", &postgres.address(), &[])
        .await?;
    Ok((site, client, postgres, database.port))
}

#[tokio::test]
async fn psql_and_pgbench_work_through_a_destination() -> Result<()> {
    let (site, client, postgres, port) = postgres().await?;
    ensure!(postgres.psql(port, "select 6 * 7").await? == "42");
    // The server sees the client process, not the user.
    let seen = postgres.psql(port, "select inet_client_addr()").await?;
    ensure!(seen == "127.0.0.1", "the server sees {seen}");

    postgres
        .pgbench(port, &["--initialize", "--scale", "5", "--quiet"])
        .await?;
    let report = postgres
        .pgbench(
            port,
            &["--client", "8", "--jobs", "2", "--transactions", "200"],
        )
        .await?;
    let all = "number of transactions actually processed: 1600/1600";
    ensure!(report.contains(all), "{report}");
    ensure!(
        report.contains("number of failed transactions: 0"),
        "{report}"
    );
    // A new connection for each transaction.
    let report = postgres
        .pgbench(
            port,
            &[
                "--client",
                "4",
                "--connect",
                "--select-only",
                "--transactions",
                "50",
            ],
        )
        .await?;
    ensure!(report.contains("actually processed: 200/200"), "{report}");
    drop(client);
    site.finish()
}

#[tokio::test]
async fn copy_of_200_mb_arrives_unchanged_both_ways() -> Result<()> {
    let (site, client, postgres, port) = postgres().await?;
    let (file, back) = (postgres.file("up.csv"), postgres.file("down.csv"));
    write_rows(&file)?;
    ensure!(std::fs::metadata(&file)?.len() > 200_000_000);
    postgres
        .psql(port, "create table bulk (id int, body text)")
        .await?;
    postgres
        .psql(port, &format!(r"\copy bulk from '{}' csv", file.display()))
        .await?;
    postgres
        .psql(port, &format!(r"\copy bulk to '{}' csv", back.display()))
        .await?;
    let (sent, received) = (checksum(&file).await?, checksum(&back).await?);
    ensure!(
        sent == received,
        "what came back differs from what was sent"
    );
    // The server itself agrees: nothing was changed on the way in and changed back on the way out.
    let rows = postgres
        .psql(port, "select count(*), count(distinct body) from bulk")
        .await?;
    ensure!(rows == "400000|400000", "{rows}");
    drop(client);
    site.finish()
}

/// 400,000 rows of 500 and some bytes, no two alike.
fn write_rows(path: &Path) -> Result<()> {
    use std::io::Write as _;

    let mut file = std::io::BufWriter::new(std::fs::File::create(path).context("rows")?);
    let mut sequence = Sequence::new(2026);
    let mut random = [0_u8; 256];
    for row in 0..400_000 {
        sequence.fill(&mut random);
        write!(file, "{row},")?;
        for byte in random {
            write!(file, "{byte:02x}")?;
        }
        writeln!(file)?;
    }
    file.flush().context("rows")
}

async fn checksum(path: &Path) -> Result<String> {
    let folder = path.parent().context("folder")?;
    let output = Launch::new("sha256sum", debian("sha256sum")?, folder)
        .arg(path)
        .run()
        .await?;
    Ok(output
        .split_whitespace()
        .next()
        .context("checksum")?
        .to_owned())
}

#[tokio::test]
async fn redis_benchmark_runs_through_a_destination() -> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    let port = site.ports().server();
    let folder = site.folder().to_owned();
    let redis = Redis::start(&folder, port).await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    let cache = site
        .destination(&gateway, "cache", &redis.address(), &[])
        .await?;

    let options = [
        "-n",
        "5000",
        "-c",
        "50",
        "-t",
        "set,get,lpush",
        "-d",
        "512",
        "--csv",
    ];
    let report = redis.benchmark(&folder, cache.port, &options).await?;
    for command in ["SET", "GET", "LPUSH"] {
        ensure!(report.contains(&format!("\"{command}\"")), "{report}");
    }
    ensure!(!report.contains("Error"), "{report}");
    // All commands have arrived: asked without the product in between.
    let length = redis.cli(&folder, port, &["LLEN", "mylist"]).await?;
    ensure!(length == "5000", "{length} elements");
    drop(client);
    site.finish()
}

#[tokio::test]
async fn curl_fetches_files_from_nginx_through_a_destination() -> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    let (port, folder) = (site.ports().server(), site.folder().to_owned());
    let root = folder.join("www");
    std::fs::create_dir(&root)?;
    let content = Sequence::new(7).take(20_000_000);
    std::fs::write(root.join("large"), &content)?;
    std::fs::write(root.join("small"), "hello\n")?;
    let nginx = Nginx::start(&folder, &root, port).await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    let web = site
        .destination(&gateway, "web", &nginx.address(), &[])
        .await?;

    let curl = || -> Result<Launch> {
        let curl = Launch::new("curl", debian("curl")?, &folder);
        Ok(curl
            .arg("--silent")
            .arg("--show-error")
            .arg("--fail")
            .option("--max-time", "30"))
    };
    let small = curl()?
        .arg(format!("http://{}/small", web.address))
        .run()
        .await?;
    ensure!(small == "hello\n", "{small:?}");
    // Two requests on one connection, the second a large one.
    let got = folder.join("got");
    curl()?
        .arg(format!("http://{}/small", web.address))
        .option("--output", "/dev/null")
        .arg(format!("http://{}/large", web.address))
        .option("--output", &got)
        .run()
        .await?;
    ensure!(std::fs::read(&got)? == content, "the file differs");
    drop(client);
    site.finish()
}

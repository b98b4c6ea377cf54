"""The page of `GET /stats` for a browser: one document, nothing loaded from anywhere."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>emailsvc</title>
<style nonce="{{ nonce }}">
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
  table { border-collapse: collapse; margin: 0 0 2rem }
  th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
  td.number { text-align: right; font-variant-numeric: tabular-nums }
  .running { color: #17692b } .paused, .outage, #said { color: #a3200d }
</style>
<h1>emailsvc</h1>
<p>Delivery: <strong class="{{ stats.delivery.state }}">{{ stats.delivery.state }}</strong>
{% if stats.delivery.since %}since {{ stats.delivery.since }}{% endif %}
{% if stats.delivery.reason %}({{ stats.delivery.reason }}){% endif %}
{% if stats.delivery.state == "paused" %}<button data-post="/delivery/resume">Resume</button>
{% else %}<button data-post="/delivery/pause">Pause</button>{% endif %}
{% if stats.delivery.outage and stats.delivery.paused %}; also an <strong class="outage">outage</strong>
since {{ stats.delivery.outage.since }} ({{ stats.delivery.outage.reason }}){% endif %}
{% if stats.delivery.outage %}<button data-post="/delivery/end-outage">End outage</button>{% endif %}
<span id="said" role="status"></span></p>
<table>
{% for name, value in stats.items() if name not in ("delivery", "refused") %}
<tr><th scope="row">{{ name | replace("_", " ") }}</th>
<td class="number">{{ "–" if value is none else value }}</td></tr>
{% endfor %}
{% for code, value in stats.refused.items() %}
<tr><th scope="row">refused: {{ code | replace("_", " ") }}</th><td class="number">{{ value }}</td></tr>
{% endfor %}
</table>
<h2>Dead letters</h2>
{% if page.dead_letters %}
<table>
<tr><th>created</th><th>email_id</th><th>reason</th><th>attempts</th><th>error</th><th></th></tr>
{% for letter in page.dead_letters %}
<tr><td>{{ letter.created_at }}</td><td>{{ letter.email_id }}</td><td>{{ letter.reason }}</td>
<td class="number">{{ letter.attempts }}</td><td>{{ letter.error }}</td>
<td><button data-post="/stats/dead-letters/{{ letter.id }}/replay">Send again</button>
<button data-post="/stats/dead-letters/{{ letter.id }}/delivered">Mark as delivered</button>
<button data-delete="/stats/dead-letters/{{ letter.id }}">Discard</button></td></tr>
{% endfor %}
</table>
{% if page.next_cursor %}<p>Only the newest are shown; see <code>/stats/dead-letters</code> for all.</p>{% endif %}
{% else %}
<p>None.</p>
{% endif %}
<script nonce="{{ nonce }}">
  document.addEventListener("click", async (event) => {
    const { post, delete: remove } = event.target.dataset;
    if (!post && !remove) return;
    const answer = await fetch(post || remove, {
      method: post ? "POST" : "DELETE", headers: { "X-Requested-With": "emailsvc" }, credentials: "same-origin",
    });
    if (answer.ok) return location.reload();
    document.getElementById("said").textContent = (await answer.json()).detail;
  });
</script>
</html>
"""

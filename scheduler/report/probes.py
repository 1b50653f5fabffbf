"""/livez, /readyz and /metrics: what kubelet and Prometheus ask."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import msgspec
from aiohttp import web

from scheduler.report.metrics import CONTENT_TYPE, MetricsPage
from scheduler.report.views import Health


def probe_routes(health: Health) -> list[web.RouteDef]:
    """Routes of a listener that serves `probes`."""

    async def livez(_: web.Request) -> web.Response:
        why_not = health.live()
        status = HTTPStatus.SERVICE_UNAVAILABLE if why_not else HTTPStatus.OK
        return _answer(status, {"live": not why_not, "reasons": [why_not] if why_not else []})

    async def readyz(_: web.Request) -> web.Response:
        readiness = health.readiness()
        # A standby that knows enough is ready: were it not, a rolling update would wait for it for ever.
        return _answer(HTTPStatus.OK if readiness.ready else HTTPStatus.SERVICE_UNAVAILABLE, readiness)

    return [web.get("/livez", livez), web.get("/readyz", readyz)]


def metrics_routes(page: MetricsPage) -> list[web.RouteDef]:
    """Routes of a listener that serves `metrics`."""

    async def metrics(request: web.Request) -> web.StreamResponse:
        parts = await page.parts()
        headers = {"Content-Type": CONTENT_TYPE, "Content-Length": str(sum(map(len, parts)))}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        if request.method != "HEAD":
            for part in parts:
                # Nothing else waits while the kernel copies megabytes.
                await asyncio.sleep(0)
                await response.write(part)
        return response

    return [web.get("/metrics", metrics)]


def _answer(status: HTTPStatus, body: object) -> web.Response:
    # A proxy that keeps an answer to a probe would hide the next one.
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )

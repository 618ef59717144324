/**
 * Lets the page start without a network: keeps the page's own files, its scripts, the wasm and its loader.
 *
 * The bundle's files are kept by the device itself, under their hashes. Documents that may change, the page, `site.json`
 * and the manifests, come from the network where it answers soon.
 */
const worker = self as unknown as ServiceWorkerGlobalScope;

/** The site's files, and a name that changes with them; both are filled in by the build. */
declare const __SITE_FILES__: readonly string[];
declare const __SITE_VERSION__: string;

const CACHE = `dimec-page-${__SITE_VERSION__}`;
const NETWORK_MS = 3_000;

worker.addEventListener('install', (event) => {
  event.waitUntil(
    (async () => {
      const cache = await caches.open(CACHE);
      await cache.addAll(__SITE_FILES__);
      await cache.addAll(
        ['./', './site.json', './bundle/manifest.json'].map((each) => new Request(each, { cache: 'no-cache' })),
      );
      await worker.skipWaiting();
    })(),
  );
});

worker.addEventListener('activate', (event) => {
  event.waitUntil(
    (async () => {
      for (const name of await caches.keys())
        if (name.startsWith('dimec-page-') && name !== CACHE) await caches.delete(name);
      await worker.clients.claim();
    })(),
  );
});

worker.addEventListener('fetch', (event) => {
  const { request } = event;
  const url = new URL(request.url);
  const scope = new URL(worker.registration.scope);
  const ours = url.origin === scope.origin && url.pathname.startsWith(scope.pathname);
  // A file with its hash in the address is the device's to keep; all else of the server is a tier's.
  if (request.method !== 'GET' || !ours || url.searchParams.has('sha256')) return;
  const path = url.pathname.slice(scope.pathname.length);
  if (__SITE_FILES__.includes(`./${path}`)) event.respondWith(keptFirst(request));
  else if (
    request.mode === 'navigate'
      ? path === '' || path === 'index.html'
      : /^(site\.json|(bundle|points\/[^/]+)\/manifest\.json)$/.test(path)
  )
    event.respondWith(networkFirst(request));
});

async function keptFirst(request: Request): Promise<Response> {
  const kept = await (await caches.open(CACHE)).match(request, { ignoreSearch: true, ignoreVary: true });
  return kept ?? fetch(request);
}

async function networkFirst(request: Request): Promise<Response> {
  const cache = await caches.open(CACHE);
  const address = request.mode === 'navigate' ? './' : request.url;
  try {
    const response = await fetch(request, { signal: AbortSignal.timeout(NETWORK_MS) });
    if (response.ok) await cache.put(address, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(address, { ignoreVary: true });
    if (kept) return kept;
    throw error;
  }
}

/** The page. */
import { useEffect, useId, useRef, useState } from 'preact/hooks';
import type { About, Text, Tier } from '../device/index.js';
import { FileIcon, Logo, TierIcon } from './icons.js';
import * as session from './session.js';
import type { Shown } from './session.js';
import { TIER_NAMES, bytes, count, lambda, milliseconds, percent, strings } from './strings.js';
import { type Table, columnsOf, rowsOf } from './texts.js';
import { Way } from './way.js';

/** How many classes of an answer are drawn. */
const MOST_CLASSES = 5;

export function App() {
  const { device, fault, site, announcement } = session;
  return (
    <>
      <Header title={site.value?.title ?? 'dimec'} />
      <main>
        {fault.value ? <Fault why={fault.value} /> : device.value ? <Desk about={device.value.about} /> : <Loading />}
      </main>
      <footer>
        <p>{strings.footer}</p>
      </footer>
      <p class="unseen" role="status" aria-live="polite">
        {announcement.value}
      </p>
    </>
  );
}

function Header({ title }: { title: string }) {
  return (
    <header>
      <Logo />
      <div class="title">
        <h1>{title}</h1>
        <p>{strings.subtitle}</p>
      </div>
      <div class="signs">
        <span class={`sign ${session.online.value ? 'good' : 'warning'}`} role="status">
          <span class="dot" aria-hidden="true" />
          {session.online.value ? strings.online : strings.offline}
        </span>
        {session.readyOffline.value && session.online.value && <span class="sign">{strings.readyOffline}</span>}
        <Install />
      </div>
    </header>
  );
}

interface InstallPrompt extends Event {
  prompt(): Promise<void>;
}

function Install() {
  const [prompt, setPrompt] = useState<InstallPrompt | null>(null);
  useEffect(() => {
    const keep = (event: Event): void => {
      event.preventDefault();
      setPrompt(event as InstallPrompt);
    };
    const forget = (): void => setPrompt(null);
    addEventListener('beforeinstallprompt', keep);
    addEventListener('appinstalled', forget);
    return () => {
      removeEventListener('beforeinstallprompt', keep);
      removeEventListener('appinstalled', forget);
    };
  }, []);
  if (!prompt) return null;
  return (
    <button type="button" class="quiet small" onClick={() => void prompt.prompt()}>
      {strings.install}
    </button>
  );
}

function Loading() {
  const { done, total } = session.loading.value;
  const share = total > 0 ? Math.min(1, done / total) : 0;
  return (
    <section class="card loading" aria-busy="true">
      <h2>{share < 1 ? strings.loading : strings.starting}</h2>
      <progress aria-label={strings.loading} max={1} value={share} />
      <p class="muted">{total > 0 ? strings.loadingOf(Math.min(done, total), total) : ' '}</p>
    </section>
  );
}

function Fault({ why }: { why: string }) {
  return (
    <section class="card fault" role="alert">
      <h2>{strings.failedTitle}</h2>
      <p>{why}</p>
      <button type="button" onClick={() => location.reload()}>
        {strings.reload}
      </button>
    </section>
  );
}

function Desk({ about }: { about: About }) {
  return (
    <div class="desk">
      <div class="column">
        <Composer pairs={about.pairs} />
        <Dial />
        <Answers about={about} />
      </div>
      <div class="column aside">
        <TotalsCard about={about} />
        <Tiers />
        <AboutCard about={about} />
      </div>
    </div>
  );
}

function Composer({ pairs }: { pairs: boolean }) {
  const [parts, setParts] = useState<readonly [string, string]>(['', '']);
  const first = useRef<HTMLTextAreaElement>(null);
  const file = useRef<HTMLInputElement>(null);
  const ids = [useId(), useId()] as const;
  const { busy, complaint, site, table, run, online } = session;
  const ready = parts[0].trim() !== '' && (!pairs || parts[1].trim() !== '');
  const submit = (): void => {
    if (ready) void session.classify(pairs ? parts : parts[0]);
  };
  const change = (place: number, value: string): void => setParts(place === 0 ? [value, parts[1]] : [parts[0], value]);
  const show = (example: Text): void => {
    const both: readonly [string, string] = typeof example === 'string' ? [example, ''] : example;
    setParts(both);
    void session.classify(example);
  };
  const examples = (site.value?.examples ?? []).filter((each) => (typeof each === 'string') !== pairs);
  const fields = pairs ? [strings.firstText, strings.secondText] : [strings.text];
  return (
    <section class="card composer">
      <form
        onSubmit={(event) => {
          event.preventDefault();
          submit();
        }}
      >
        {fields.map((label, place) => (
          <div key={label} class="field">
            <label for={ids[place]}>{label}</label>
            <textarea
              id={ids[place]}
              ref={place === 0 ? first : null}
              rows={pairs ? 2 : 3}
              value={parts[place]}
              placeholder={strings.placeholder}
              onInput={(event) => change(place, event.currentTarget.value)}
              onKeyDown={(event) => {
                if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) submit();
              }}
            />
          </div>
        ))}
        <div class="actions">
          <button type="submit" disabled={!ready || busy.value}>
            {strings.classify}
          </button>
          <button type="button" class="quiet" disabled={busy.value} onClick={() => file.current?.click()}>
            <FileIcon /> {strings.file}
          </button>
          <span class="muted shortcut">{strings.shortcut}</span>
          <input
            ref={file}
            class="unseen"
            type="file"
            accept=".csv,.tsv,.txt,text/plain,text/csv"
            tabIndex={-1}
            aria-label={strings.file}
            onChange={(event) => {
              const [chosen] = event.currentTarget.files ?? [];
              if (chosen) void session.openFile(chosen);
              event.currentTarget.value = '';
            }}
          />
        </div>
      </form>
      {complaint.value && (
        <p class="note bad" role="alert">
          {complaint.value}
        </p>
      )}
      {!online.value && <p class="note warning">{strings.offlineHint}</p>}
      {table.value && <OpenTable table={table.value} />}
      {run.value && <Progress />}
      {!table.value && !run.value && (
        <>
          {examples.length > 0 && (
            <div class="examples">
              <h2 class="small-title">{strings.examples}</h2>
              <ul>
                {examples.map((each) => (
                  <li key={String(each)}>
                    <button type="button" class="chip" disabled={busy.value} onClick={() => show(each)}>
                      {typeof each === 'string' ? each : each.join(' · ')}
                    </button>
                  </li>
                ))}
              </ul>
            </div>
          )}
          <p class="muted hint">{pairs ? strings.fileHintPairs : strings.fileHint}</p>
        </>
      )}
    </section>
  );
}

function OpenTable({ table }: { table: Table }) {
  const choose = (which: number, place: number): void => {
    session.table.value = { ...table, chosen: table.chosen.map((each, index) => (index === which ? place : each)) };
  };
  const [columns, rows] = [columnsOf(table), rowsOf(table)];
  const start = useRef<HTMLButtonElement>(null);
  useEffect(() => start.current?.focus(), []);
  return (
    <div class="file">
      <p class="file-name">
        <FileIcon /> <strong>{table.name}</strong>
      </p>
      {columns.length > 1 &&
        table.chosen.map((chosen, which) => (
          <label key={which} class="select">
            <span>{which === 0 ? strings.column : strings.secondColumn}</span>
            <select value={chosen} onChange={(event) => choose(which, Number(event.currentTarget.value))}>
              {columns.map((column, place) => (
                <option key={place} value={place}>
                  {column}
                </option>
              ))}
            </select>
          </label>
        ))}
      {table.headed !== null && (
        <label class="check">
          <input
            type="checkbox"
            checked={table.headed}
            onChange={(event) => (session.table.value = { ...table, headed: event.currentTarget.checked })}
          />
          {strings.headed}
        </label>
      )}
      <p class="muted preview">{table.chosen.map((place) => rows[0]?.[place] ?? '').join(' · ')}</p>
      <div class="actions">
        <button ref={start} type="button" onClick={() => void session.classifyTable()}>
          {strings.start(rows.length)}
        </button>
        <button type="button" class="quiet" onClick={() => (session.table.value = null)}>
          {strings.dismiss}
        </button>
      </div>
    </div>
  );
}

function Progress() {
  const { name, total, done, rate, state } = session.run.value!;
  return (
    <div class="file">
      <p class="file-name">
        <FileIcon /> <strong>{name}</strong>
      </p>
      <progress aria-label={name} max={total} value={done} />
      <p class="muted run-line">
        <span>
          {state === 'running'
            ? strings.progress(done, total)
            : state === 'finished'
              ? strings.finished(done)
              : strings.stopped(done, total)}
        </span>
        <span>{Number.isFinite(rate) && done > 0 ? strings.perSecond(rate) : ''}</span>
      </p>
      <div class="actions">
        {state === 'running' ? (
          <button type="button" class="quiet" onClick={session.stop}>
            {strings.stop}
          </button>
        ) : (
          <button type="button" class="quiet" onClick={() => (session.run.value = null)}>
            {strings.close}
          </button>
        )}
      </div>
    </div>
  );
}

function Dial() {
  const points = session.site.value?.points ?? [];
  const id = useId();
  if (points.length === 0) return null;
  const now = session.point.value;
  const name = points[now - 1]?.name ?? strings.own;
  return (
    <section class="card dial">
      <label for={id}>{strings.dial}</label>
      <output for={id}>{name}</output>
      <input
        id={id}
        type="range"
        min={0}
        max={points.length}
        step={1}
        value={now}
        aria-valuetext={name}
        disabled={session.busy.value}
        onChange={(event) => void session.setPoint(Number(event.currentTarget.value))}
      />
    </section>
  );
}

function Answers({ about }: { about: About }) {
  const { shown, totals } = session;
  const { n } = totals.value;
  return (
    <section class="answers" aria-labelledby="answers">
      <div class="section-head">
        <h2 id="answers">{strings.answers}</h2>
        {n > 0 && (
          <div class="actions">
            <button type="button" class="quiet small" disabled={session.busy.value} onClick={session.download}>
              {strings.download}
            </button>
            <button type="button" class="quiet small" disabled={session.busy.value} onClick={session.clear}>
              {strings.clear}
            </button>
          </div>
        )}
      </div>
      {n > 0 && <p class="muted brief">{strings.brief(n, 1 - totals.value.meanCost / about.allCloudCost)}</p>}
      {n === 0 && <p class="empty">{strings.noAnswers}</p>}
      {n > shown.value.length && <p class="muted">{strings.onlyLatest(shown.value.length, n)}</p>}
      <ul class="list">
        {shown.value.map((each) => (
          <AnswerCard key={each.id} about={about} {...each} />
        ))}
      </ul>
    </section>
  );
}

function AnswerCard({ about, text, answer }: Shown & { about: About }) {
  const ranked = answer.probabilities
    .map((share, place) => ({ share, label: about.labels[place]! }))
    .sort((a, b) => b.share - a.share);
  const more = ranked.length - MOST_CLASSES;
  return (
    <li class={`card answer ${answer.tier}`}>
      <p class="quote">{typeof text === 'string' ? text : text.join(' · ')}</p>
      <div class="verdict">
        <strong class="label">{answer.label}</strong>
        <span class={`badge ${answer.tier}`}>
          <TierIcon tier={answer.tier} />
          {strings.by(answer.tier)}
        </span>
      </div>
      <ul class="classes">
        {ranked.slice(0, MOST_CLASSES).map(({ share, label }) => (
          <li key={label} class={label === answer.label ? 'first' : ''}>
            <span class="class-name">{label}</span>
            <span class="bar" aria-hidden="true">
              <span style={{ width: `${100 * share}%` }} />
            </span>
            <span class="class-share">{percent(share)}</span>
          </li>
        ))}
      </ul>
      {more > 0 && <p class="muted more">{strings.otherClasses(more)}</p>}
      <Way about={about} answer={answer} />
      <dl class="facts">
        <div>
          <dt>{strings.time}</dt>
          <dd>{milliseconds(answer.latencyMs)}</dd>
        </div>
        <div>
          <dt>{strings.cost}</dt>
          <dd>{lambda(answer.cost)}</dd>
        </div>
        <div>
          <dt class="unseen">{strings.text}</dt>
          <dd class="muted">{strings.tokens(answer.nTokens, answer.cut)}</dd>
        </div>
      </dl>
      {answer.degraded && <p class="note warning">{sentence(answer.degraded)}</p>}
    </li>
  );
}

function sentence(words: string): string {
  return `${words.charAt(0).toUpperCase()}${words.slice(1)}.`;
}

function TotalsCard({ about }: { about: About }) {
  const totals = session.totals.value;
  const sent = Object.values(session.traffic.value).reduce((sum, each) => sum + each.sentBytes, 0);
  const received = Object.values(session.traffic.value).reduce((sum, each) => sum + each.receivedBytes, 0);
  if (totals.n === 0)
    return (
      <section class="card">
        <h2>{strings.totals}</h2>
        <p class="muted">{strings.noTotals}</p>
      </section>
    );
  const figures: [string, string][] = [
    [strings.texts, count(totals.n)],
    [strings.saved, percent(1 - totals.meanCost / about.allCloudCost)],
    [strings.meanCost, lambda(totals.meanCost)],
    [strings.medianTime, milliseconds(totals.medianMs)],
    [strings.sent, bytes(sent)],
    [strings.received, bytes(received)],
    ...(totals.degraded > 0 ? ([[strings.degraded, count(totals.degraded)]] as [string, string][]) : []),
  ];
  return (
    <section class="card" aria-labelledby="totals">
      <h2 id="totals">{strings.totals}</h2>
      <div class="shares" aria-hidden="true">
        {totals.shares.map(
          ({ tier, share }) => share > 0 && <span key={tier} class={tier} style={{ flexGrow: share }} />,
        )}
      </div>
      <ul class="legend" aria-label={strings.shares}>
        {totals.shares.map(({ tier, share, n }) => (
          <li key={tier}>
            <span class={`swatch ${tier}`} aria-hidden="true" />
            {TIER_NAMES[tier]} <strong>{percent(share)}</strong> <span class="muted">{count(n)}</span>
          </li>
        ))}
      </ul>
      <dl class="figures">
        {figures.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
    </section>
  );
}

function Tiers() {
  const { site, wantsToken, hasToken } = session;
  const [token, setToken] = useState('');
  const id = useId();
  const asked = site.value?.edge ?? site.value?.cloud;
  const wanted = wantsToken.value;
  return (
    <section class="card" aria-labelledby="tiers">
      <h2 id="tiers">{strings.tiers}</h2>
      <ul class="tiers">
        <TierLine tier="mobile" where={strings.here} state="well" said={strings.tierWell} />
        {(['edge', 'cloud'] as const).map((tier) => {
          const url = site.value?.[tier];
          const health = session.health.value[tier];
          const said = !url
            ? strings.tierNone
            : health.kind === 'unasked'
              ? strings.tierUnasked
              : health.kind === 'well'
                ? strings.tierWell
                : sentence(health.why);
          return (
            <TierLine
              key={tier}
              tier={tier}
              where={url ? new URL(url).host : ''}
              state={url ? health.kind : 'unasked'}
              said={said}
            />
          );
        })}
      </ul>
      {asked && (
        <form
          class="token"
          onSubmit={(event) => {
            event.preventDefault();
            void session.setToken(token.trim() || null);
            setToken('');
          }}
        >
          <label for={id}>{strings.token}</label>
          {wanted && (
            <p class="note warning" role="alert">
              {strings.tokenWanted(wanted)}
            </p>
          )}
          <div class="token-line">
            <input
              id={id}
              type="password"
              autocomplete="off"
              spellcheck={false}
              value={token}
              aria-describedby={`${id}-hint`}
              onInput={(event) => setToken(event.currentTarget.value)}
            />
            <button type="submit" class="quiet" disabled={token.trim() === ''}>
              {strings.useToken}
            </button>
          </div>
          <p class="muted hint" id={`${id}-hint`}>
            {hasToken.value ? strings.tokenSet : strings.tokenNone} {strings.tokenHint}{' '}
            {hasToken.value && (
              <button type="button" class="link" onClick={() => void session.setToken(null)}>
                {strings.removeToken}
              </button>
            )}
          </p>
        </form>
      )}
    </section>
  );
}

function TierLine({ tier, where, state, said }: { tier: Tier; where: string; state: string; said: string }) {
  return (
    <li class={`tier ${tier}`}>
      <span class="tier-icon">
        <TierIcon tier={tier} />
      </span>
      <span class="tier-name">
        <strong>{TIER_NAMES[tier]}</strong> <span class="muted">{where}</span>
      </span>
      <span class={`tier-said ${state}`}>{said}</span>
    </li>
  );
}

function AboutCard({ about }: { about: About }) {
  const device = session.device.value!;
  const rows: [string, string][] = [
    [strings.policy, about.policy],
    [strings.model, about.fingerprint.slice(7, 19)],
    [strings.weights, about.quantized ? strings.int8 : strings.float],
    [strings.engine, strings.engineOf(device.threads)],
    ...(about.learns ? ([[strings.learning, strings.keeping[about.keeping]]] as [string, string][]) : []),
    [strings.files, about.filesKept ? strings.filesKept : strings.filesNotKept],
  ];
  return (
    <details class="card">
      <summary>{strings.about}</summary>
      <dl class="figures about">
        {rows.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
    </details>
  );
}

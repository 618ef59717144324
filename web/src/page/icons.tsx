/** Drawn by hand, so that the page loads none. */
import type { ComponentChildren } from 'preact';
import type { Tier } from '../device/index.js';

function Icon({ children }: { children: ComponentChildren }) {
  return (
    <svg
      viewBox="0 0 24 24"
      width="18"
      height="18"
      fill="none"
      stroke="currentColor"
      stroke-width="1.8"
      stroke-linecap="round"
      stroke-linejoin="round"
      aria-hidden="true"
      focusable="false"
    >
      {children}
    </svg>
  );
}

export function TierIcon({ tier }: { tier: Tier }) {
  if (tier === 'mobile')
    return (
      <Icon>
        <rect x="7" y="2.5" width="10" height="19" rx="2.4" />
        <path d="M11 18.5h2" />
      </Icon>
    );
  if (tier === 'edge')
    return (
      <Icon>
        <rect x="3.5" y="4" width="17" height="7" rx="1.8" />
        <rect x="3.5" y="13" width="17" height="7" rx="1.8" />
        <path d="M7 7.5h.01M7 16.5h.01M11 7.5h5M11 16.5h5" />
      </Icon>
    );
  return (
    <Icon>
      <path d="M7 18.5a4.5 4.5 0 0 1-.6-8.96 6 6 0 0 1 11.5 1.2A3.9 3.9 0 0 1 17.5 18.5z" />
    </Icon>
  );
}

export function FileIcon() {
  return (
    <Icon>
      <path d="M13.5 3H7a2 2 0 0 0-2 2v14a2 2 0 0 0 2 2h10a2 2 0 0 0 2-2V8.5z" />
      <path d="M13.5 3v5.5H19M9 13h6M9 17h6" />
    </Icon>
  );
}

export function Logo() {
  return (
    <svg class="logo" viewBox="0 0 32 32" width="32" height="32" aria-hidden="true" focusable="false">
      <rect width="32" height="32" rx="8" class="logo-ground" />
      <path
        d="M6 22h7v-6h7v-6h6"
        fill="none"
        class="logo-way"
        stroke-width="2.6"
        stroke-linecap="round"
        stroke-linejoin="round"
      />
      <circle cx="6.5" cy="22" r="2.6" class="logo-dot" />
      <circle cx="25.5" cy="10" r="2.6" class="logo-dot" />
    </svg>
  );
}
